#include "dns/stream.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "dns/upstream.hpp"
#include "names/bytes.hpp"

namespace sluice::dns {
namespace {

constexpr std::size_t kLargestQuery = 4096;  // whatever the settings say
constexpr std::uint32_t kMostEarly = 16;     // of an attachment: no budget is known yet

}  // namespace

Streams::Streams(StreamSettings settings, int epoll, TimerWheel& timers, StreamOwner& owner)
    : settings_(settings), epoll_(epoll), timers_(timers), owner_(owner) {}

Streams::~Streams() = default;

void Streams::add(Fd fd, std::uint64_t attachment, StreamPlace place, std::uint64_t now) {
  (void)open(std::move(fd), attachment, std::move(place), now);
}

void Streams::add_early(Fd fd, std::uint64_t attachment, std::uint64_t now) {
  if (const auto counted = early_.find(attachment);
      counted != early_.end() && counted->second >= kMostEarly)
    return;
  auto* const stream = open(std::move(fd), attachment, {}, now);
  if (stream == nullptr) return;
  stream->early = true;
  ++early_[attachment];
}

void Streams::no_longer_early(Stream& stream) {
  stream.early = false;
  const auto counted = early_.find(stream.attachment);
  if (--counted->second == 0) early_.erase(counted);
}

void Streams::take_places(std::uint64_t attachment,
                          const std::shared_ptr<AttachmentBudget>& budget) {
  if (!early_.contains(attachment)) return;
  for (std::uint32_t i = 0; i < streams_.size(); ++i) {
    auto* const stream = streams_[i].get();
    if (stream == nullptr || !stream->early || stream->attachment != attachment) continue;
    no_longer_early(*stream);
    if (!budget) continue;
    stream->place.budget = budget;
    stream->place.place = budget->connect();
    if (!stream->place.place) close(i);
  }
}

Streams::Stream* Streams::open(Fd fd, std::uint64_t attachment, StreamPlace place,
                               std::uint64_t now) {
  if (open_ >= settings_.connections) return nullptr;
  std::uint32_t index;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else {
    index = static_cast<std::uint32_t>(streams_.size());
    streams_.emplace_back();
  }
  generation_ = (generation_ + 1) & 0xffffff;  // as event_tag() carries it
  auto stream = std::make_unique<Stream>();
  stream->place = std::move(place);
  stream->fd = std::move(fd);
  stream->attachment = attachment;
  stream->generation = generation_;
  stream->last_progress = now;
  stream->watched = EPOLLIN;
  const int on = 1;
  (void)::setsockopt(stream->fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  epoll_event event{.events = EPOLLIN,
                    .data = {.u64 = event_tag(Source::client_stream, index, generation_)}};
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, stream->fd.get(), &event) < 0) {
    free_.push_back(index);
    return nullptr;
  }
  timers_.add({.due = now + settings_.idle,
               .kind = static_cast<std::uint32_t>(TimerKind::client_stream),
               .index = index,
               .generation = generation_});
  streams_[index] = std::move(stream);
  ++open_;
  return streams_[index].get();
}

Streams::Stream* Streams::find(StreamRef ref) {
  if (ref.index >= streams_.size()) return nullptr;
  auto* stream = streams_[ref.index].get();
  return stream != nullptr && stream->generation == ref.generation ? stream : nullptr;
}

void Streams::close(std::uint32_t index) {
  const auto stream = std::move(streams_[index]);
  if (!stream) return;
  if (stream->early) no_longer_early(*stream);
  free_.push_back(index);
  --open_;
}

void Streams::drop_attachment(std::uint64_t attachment) {
  for (std::uint32_t i = 0; i < streams_.size(); ++i)
    if (streams_[i] && streams_[i]->attachment == attachment) close(i);
}

void Streams::watch(std::uint32_t index) {
  auto& stream = *streams_[index];
  std::uint32_t wanted = 0;
  if (!stream.ended && stream.in_flight < settings_.in_flight) wanted |= EPOLLIN;
  if (stream.out_at < stream.out.size()) wanted |= EPOLLOUT;
  if (wanted == stream.watched) return;
  stream.watched = wanted;
  epoll_event event{.events = wanted,
                    .data = {.u64 = event_tag(Source::client_stream, index, stream.generation)}};
  if (::epoll_ctl(epoll_, EPOLL_CTL_MOD, stream.fd.get(), &event) < 0) close(index);
}

void Streams::on_event(std::uint32_t index, std::uint32_t generation, std::uint32_t events,
                       std::uint64_t now) {
  const StreamRef ref{index, generation};
  if (find(ref) == nullptr) return;
  if ((events & EPOLLERR) != 0) return close(index);
  if ((events & EPOLLOUT) != 0) write(index, now);
  const auto* stream = find(ref);
  if (stream == nullptr) return;
  if ((events & EPOLLIN) != 0 && (stream->watched & EPOLLIN) != 0) return read(index, now);
  // A hang-up is reported whether asked for or not; with nothing to read it would come for ever.
  if ((events & EPOLLHUP) != 0) close(index);
}

void Streams::read(std::uint32_t index, std::uint64_t now) {
  auto& stream = *streams_[index];
  // Little at once: another's question waits for as long as those in it take.
  std::array<std::uint8_t, 512> chunk;
  const ssize_t got = ::recv(stream.fd.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (got < 0) return close(index);
  if (got == 0) {
    stream.ended = true;
    // Half-closed: what it asked is still answered.
    if (stream.in_flight == 0 && stream.out_at == stream.out.size()) return close(index);
    return watch(index);
  }
  stream.in.insert(stream.in.end(), chunk.begin(), chunk.begin() + got);
  take_messages(index, now);
}

void Streams::take_messages(std::uint32_t index, std::uint64_t now) {
  auto* stream = streams_[index].get();
  const StreamRef ref{index, stream->generation};
  std::size_t used = 0;
  stream->taking = true;
  while (stream->in_flight < settings_.in_flight && stream->in.size() - used >= 2) {
    const std::size_t length = load16(stream->in.data() + used);
    if (length == 0 || length > std::min(settings_.largest_query, kLargestQuery))
      return close(index);
    if (stream->in.size() - used - 2 < length) break;
    ++stream->in_flight;
    stream->last_progress = now;
    // The owner may answer at once, and that may end the connection: the bytes must outlive it.
    std::array<std::uint8_t, kLargestQuery> message;
    std::copy_n(stream->in.begin() + static_cast<std::ptrdiff_t>(used) + 2, length,
                message.begin());
    used += 2 + length;
    owner_.stream_query(ref, stream->attachment, std::span(message).first(length));
    stream = find(ref);
    if (stream == nullptr) return;
  }
  stream->taking = false;
  stream->in.erase(stream->in.begin(), stream->in.begin() + static_cast<std::ptrdiff_t>(used));
  watch(index);
}

void Streams::answered(StreamRef ref, std::span<const std::uint8_t> message, std::uint64_t now) {
  auto* stream = find(ref);
  if (stream == nullptr) return;
  if (stream->in_flight > 0) --stream->in_flight;
  if (!message.empty()) {
    if (stream->out.size() - stream->out_at + message.size() > settings_.unsent)
      return close(ref.index);  // it asks and does not read
    std::array<std::uint8_t, 2> length;
    store16(length.data(), message.size());
    stream->out.insert(stream->out.end(), length.begin(), length.end());
    stream->out.insert(stream->out.end(), message.begin(), message.end());
    write(ref.index, now);
    stream = find(ref);
    if (stream == nullptr) return;
  }
  if (stream->ended && stream->in_flight == 0 && stream->out_at == stream->out.size())
    return close(ref.index);
  // Questions that were read but had to wait.
  if (!stream->taking && stream->in.size() >= 2 && stream->in_flight + 1 == settings_.in_flight)
    return take_messages(ref.index, now);
  watch(ref.index);
}

void Streams::write(std::uint32_t index, std::uint64_t now) {
  auto& stream = *streams_[index];
  while (stream.out_at < stream.out.size()) {
    const ssize_t sent = ::send(stream.fd.get(), stream.out.data() + stream.out_at,
                                stream.out.size() - stream.out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      if (stream.out_at > 64 * 1024) {
        stream.out.erase(stream.out.begin(),
                         stream.out.begin() + static_cast<std::ptrdiff_t>(stream.out_at));
        stream.out_at = 0;
      }
      return watch(index);
    }
    if (sent <= 0) return close(index);
    stream.out_at += static_cast<std::size_t>(sent);
    stream.last_progress = now;
  }
  stream.out.clear();
  stream.out_at = 0;
  if (stream.ended && stream.in_flight == 0) return close(index);
  watch(index);
}

void Streams::on_timer(const TimerWheel::Entry& entry, std::uint64_t now) {
  auto* stream = find({entry.index, static_cast<std::uint32_t>(entry.generation)});
  if (stream == nullptr) return;
  // One that waits for an answer of ours is not idle; one that does not read is.
  const bool waits_for_us = stream->in_flight != 0 && stream->out_at == stream->out.size();
  if (!waits_for_us && now - stream->last_progress >= settings_.idle) return close(entry.index);
  auto again = entry;
  again.due = waits_for_us ? now + settings_.idle : stream->last_progress + settings_.idle;
  timers_.add(again);
}

}  // namespace sluice::dns
