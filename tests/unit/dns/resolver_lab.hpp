// The whole resolver on loopback: the plugin in a FakeHost, an upstream that says what a test
// wants, and clients whose datagrams carry a mark. In a network namespace of its own, so that
// nothing else is there and port 53 is free.
//
//   Lab lab;
//   lab.upstream.add("www.example", type::a, 300, v4("192.0.2.1"));
//   lab.attach(1, {allow("www.example")});
//   Guest guest(lab, 1);
//   CHECK(guest.ask("www.example", type::a).records == ...);
#pragma once

#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#define SLUICE_SDK_QUALIFIED
#include <sluice/fake_host.hpp>

#include "base/fd.hpp"
#include "dns/plugin.hpp"
#include "unit/dns/packets.hpp"

namespace dns_test {

using namespace std::chrono_literals;
using sluice::Fd;
namespace dns = sluice::dns;
namespace sdk = sluice::sdk;

inline void require(bool holds, const char* what) {
  if (!holds) throw std::system_error(errno, std::generic_category(), what);
}

// A namespace with nothing but a loopback that is up, and the addresses that resolvers listen on.
// False: this process may not make one.
inline bool enter_namespace() {
  if (::unshare(CLONE_NEWNET) < 0) return false;
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq link{};
  std::strcpy(link.ifr_name, "lo");
  require(::ioctl(fd.get(), SIOCGIFFLAGS, &link) == 0, "lo");
  link.ifr_flags |= IFF_UP;
  require(::ioctl(fd.get(), SIOCSIFFLAGS, &link) == 0, "lo up");
  Fd fd6(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  for (const char last : {'1', '2', '3'}) {
    struct {
      in6_addr address;
      std::uint32_t prefix_length;
      int ifindex;
    } wanted{.address = {}, .prefix_length = 128, .ifindex = 1};
    const std::string text = std::string("fd53:6c75:6963:65::") + last;
    inet_pton(AF_INET6, text.c_str(), &wanted.address);
    require(::ioctl(fd6.get(), SIOCSIFADDR, &wanted) == 0, "an address of lo");
  }
  return true;
}

inline sockaddr_in loopback(std::uint16_t port = 0) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// A question as the upstream got it.
struct Seen {
  Packet packet;
  bool by_tcp = false;
  std::uint16_t from = 0;      // port, of UDP
  std::size_t connection = 0;  // which, of TCP: 1 is the first
  [[nodiscard]] std::string name() const {
    return std::string(view(packet).question().name.text().view());
  }
  [[nodiscard]] unsigned kind() const { return view(packet).question().type; }
};

// An answer under way: to the very question, with the id and the case that were sent.
inline Build reply_to(const Packet& query, unsigned flags = 0x8180) {
  const auto wire_form = view(query).question().wire;
  Build build(flags, static_cast<unsigned>(query[0]) << 8 | query[1]);
  build.append(Packet(wire_form.begin(), wire_form.end()));
  build.put16(4, 1);
  return build;
}

// An upstream server. Single answers come from add() and link(); a handler sees every question
// first.
class ScriptedUpstream {
 public:
  // What to send for a question: any number of messages. Nothing: what was added.
  using Handler = std::function<std::optional<std::vector<Packet>>(const Seen&)>;

  explicit ScriptedUpstream(bool with_tcp = true) {
    udp_ = Fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    auto address = loopback();
    require(::bind(udp_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    socklen_t length = sizeof address;
    ::getsockname(udp_.get(), reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    if (with_tcp) {
      tcp_ = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      require(::bind(tcp_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0,
              "bind tcp");
      require(::listen(tcp_.get(), 64) == 0, "listen");
    }
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    stop_read_ = Fd(ends[0]);
    stop_write_ = Fd(ends[1]);
    thread_ = std::thread([this] { run(); });
  }
  ~ScriptedUpstream() {
    stop_write_.reset();
    thread_.join();
  }

  [[nodiscard]] std::string endpoint() const { return "127.0.0.1:" + std::to_string(port_); }

  void add(const std::string& owner, unsigned kind, std::uint32_t ttl, const Packet& rdata) {
    const std::lock_guard lock(mutex_);
    zone_[owner].push_back({kind, ttl, rdata, {}});
  }
  void link(const std::string& owner, const std::string& target, std::uint32_t ttl = 300) {
    const std::lock_guard lock(mutex_);
    zone_[owner].push_back({type::cname, ttl, {}, target});
  }
  void clear() {
    const std::lock_guard lock(mutex_);
    zone_.clear();
  }
  void handle(Handler handler) {
    const std::lock_guard lock(mutex_);
    handler_ = std::move(handler);
  }
  [[nodiscard]] std::vector<Seen> seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }
  [[nodiscard]] std::size_t count() const { return seen().size(); }
  // Waits until so many questions have come.
  bool wait_for(std::size_t count) const {
    for (int i = 0; i < 1000; ++i) {
      if (this->count() >= count) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
  // Sends a message to whoever asked last by UDP, later than its handler.
  void send_late(const Packet& packet) {
    const std::lock_guard lock(mutex_);
    ::sendto(udp_.get(), packet.data(), packet.size(), 0, reinterpret_cast<sockaddr*>(&last_peer_),
             sizeof last_peer_);
  }

  // What was added, followed from the question; NXDOMAIN with an SOA where nothing was.
  [[nodiscard]] Packet answer(const Seen& question, std::size_t limit) const {
    const std::lock_guard lock(mutex_);
    auto owner = question.name();
    const bool exists = zone_.contains(owner);
    auto build = reply_to(question.packet, exists ? 0x8180 : 0x8183);
    bool any = false;
    for (int hops = 0; hops < 20 && zone_.contains(owner); ++hops) {
      std::string next;
      for (const auto& record : zone_.at(owner)) {
        if (record.kind == type::cname) {
          build.link(owner, type::cname, record.ttl, record.target);
          next = record.target;
        } else if (record.kind == question.kind()) {
          build.answer(owner, record.kind, record.ttl, record.rdata);
          any = true;
        }
      }
      if (next.empty()) break;
      owner = next;
    }
    if (!any) build.authority("example", type::soa, 600, soa("ns.example", 600));
    if (build.size() <= limit) return build.done();
    return reply_to(question.packet, 0x8380).done();
  }

 private:
  struct Stored {
    unsigned kind;
    std::uint32_t ttl;
    Packet rdata;
    std::string target;
  };

  std::vector<Packet> answers(const Seen& question) {
    Handler handler;
    {
      const std::lock_guard lock(mutex_);
      seen_.push_back(question);
      handler = handler_;
    }
    if (handler)
      if (auto said = handler(question)) return *said;
    return {answer(question, question.by_tcp ? 65'535 : 1232)};
  }

  void run() {
    struct Connection {
      Fd fd;
      std::size_t number;
      Packet in{};
    };
    std::vector<Connection> connections;
    std::size_t accepted_so_far = 0;
    std::array<std::uint8_t, 4096> buffer;
    for (;;) {
      std::vector<pollfd> polled{{stop_read_.get(), POLLIN, 0}, {udp_.get(), POLLIN, 0}};
      polled.push_back({tcp_.get(), POLLIN, 0});
      for (const auto& connection : connections) polled.push_back({connection.fd.get(), POLLIN, 0});
      if (::poll(polled.data(), polled.size(), -1) < 0) continue;
      if (polled[0].revents != 0) return;
      if (polled[1].revents != 0) {
        sockaddr_in peer{};
        socklen_t length = sizeof peer;
        const auto got = ::recvfrom(udp_.get(), buffer.data(), buffer.size(), 0,
                                    reinterpret_cast<sockaddr*>(&peer), &length);
        if (got > 0) {
          {
            const std::lock_guard lock(mutex_);
            last_peer_ = peer;
          }
          for (const auto& packet :
               answers({{buffer.data(), buffer.data() + got}, false, ntohs(peer.sin_port), 0}))
            ::sendto(udp_.get(), packet.data(), packet.size(), 0,
                     reinterpret_cast<sockaddr*>(&peer), length);
        }
      }
      for (std::size_t i = 3; i < polled.size(); ++i) {
        if (polled[i].revents == 0) continue;
        auto& connection = connections[i - 3];
        const auto got = ::recv(connection.fd.get(), buffer.data(), buffer.size(), 0);
        if (got <= 0) {
          connection.fd.reset();
          continue;
        }
        connection.in.insert(connection.in.end(), buffer.data(), buffer.data() + got);
        while (connection.in.size() >= 2) {
          const std::size_t size =
              static_cast<std::size_t>(connection.in[0]) << 8 | connection.in[1];
          if (connection.in.size() < 2 + size) break;
          const Packet query(connection.in.begin() + 2,
                             connection.in.begin() + 2 + static_cast<std::ptrdiff_t>(size));
          connection.in.erase(connection.in.begin(),
                              connection.in.begin() + 2 + static_cast<std::ptrdiff_t>(size));
          for (const auto& packet : answers({query, true, 0, connection.number})) {
            const auto framed = joined({two(static_cast<unsigned>(packet.size())), packet});
            (void)!::send(connection.fd.get(), framed.data(), framed.size(), MSG_NOSIGNAL);
          }
        }
      }
      std::erase_if(connections, [](const auto& connection) { return !connection.fd; });
      if (polled[2].revents != 0) {
        Fd accepted(::accept4(tcp_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (accepted) connections.push_back({std::move(accepted), ++accepted_so_far});
      }
    }
  }

  Fd udp_, tcp_, stop_read_, stop_write_;
  std::uint16_t port_ = 0;
  mutable std::mutex mutex_;
  std::map<std::string, std::vector<Stored>> zone_;
  Handler handler_;
  std::vector<Seen> seen_;
  sockaddr_in last_peer_{};
  std::thread thread_;
};

inline sdk::Rule allow(const std::string& pattern) {
  return {.action = sdk::Action::allow, .domain = pattern, .name = "test"};
}
inline sdk::Rule deny(const std::string& pattern) {
  return {.action = sdk::Action::deny, .domain = pattern, .name = "test"};
}

struct Lab {
  ScriptedUpstream upstream;
  sdk::FakeHost host{"dns"};
  dns::DnsPlugin* plugin = nullptr;

  // `configure` sees the host before the plugin is made.
  explicit Lab(const std::function<void(sdk::FakeHost&)>& configure = {}) {
    host.configure("upstreams", std::vector<std::string>{upstream.endpoint()});
    host.configure("limit.upstream_rate", 100'000);
    host.configure("limit.upstream_burst", 100'000);
    host.set_decider(false);
    if (configure) configure(host);
    plugin = &host.create<dns::DnsPlugin>();
    host.start();
  }

  // Its datagrams carry the mark 100 + id.
  void attach(std::uint64_t id, const std::vector<sdk::Rule>& rules,
              sdk::Mode mode = sdk::Mode::allowlist, bool audit = false) {
    host.set_mark(static_cast<std::uint32_t>(100 + id), {id});
    host.add_attachment({.id = {id},
                         .mode = mode,
                         .target = sdk::InterfaceTarget{"tap" + std::to_string(id), 7},
                         .audit = audit});
    host.domain_rules({id}, rules);
    if (rules.empty()) host.advance(3s);  // that it has none is believed after a while
  }
  [[nodiscard]] std::vector<std::string> learned(std::uint64_t id) const {
    std::vector<std::string> texts;
    for (const auto& learned : host.learned())
      if (learned.attachment.value == id)
        for (const auto& address : learned.addresses) texts.push_back(address.text());
    return texts;
  }
};

struct Reply {
  Packet packet;
  unsigned rcode = 0;
  bool truncated = false;
  std::vector<std::string> answers;  // "www.example 1 300 c0000201", in order
  std::vector<std::uint32_t> ttls;
  std::optional<unsigned> ede;
  std::string ede_text;
};

inline Reply read_reply(Packet packet) {
  Reply reply;
  reply.packet = std::move(packet);
  const auto message = view(reply.packet);
  reply.rcode = message.rcode();
  reply.truncated = message.header().truncated();
  for (const auto& record : message.records()) {
    if (record.section == Section::answer) {
      reply.answers.push_back(shown(message, record).substr(7));
      reply.ttls.push_back(record.ttl);
    }
    if (record.type == type::opt) {
      auto options = record.rdata;
      while (options.size() >= 4) {
        const std::size_t size = static_cast<std::size_t>(options[2]) << 8 | options[3];
        if (options[0] == 0 && options[1] == 15 && size >= 2) {
          reply.ede = static_cast<unsigned>(options[4]) << 8 | options[5];
          reply.ede_text.assign(options.begin() + 6,
                                options.begin() + 4 + static_cast<std::ptrdiff_t>(size));
        }
        options = options.subspan(4 + size);
      }
    }
  }
  return reply;
}

// A client of one attachment, over UDP, or TCP (FakeHost::set_streams says whose those are).
class Guest {
 public:
  Guest(Lab& lab, std::uint64_t id, bool by_tcp = false, bool v6 = false) : by_tcp_(by_tcp) {
    const auto served = lab.host.served().at((by_tcp ? 2 : 0) + (v6 ? 1 : 0));
    sockaddr_in6 address{};
    socklen_t length = sizeof address;
    ::getsockname(served, reinterpret_cast<sockaddr*>(&address), &length);
    fd_ = Fd(
        ::socket(v6 ? AF_INET6 : AF_INET, (by_tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0));
    const auto mark = static_cast<std::uint32_t>(100 + id);
    require(::setsockopt(fd_.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0, "SO_MARK");
    require(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), length) == 0, "connect");
  }

  // With EDNS of that size; 0: without.
  std::uint16_t send(std::string_view name, unsigned kind, unsigned edns = 1232,
                     bool dnssec_ok = false) {
    Build build(0x0100, ++id_);
    build.question(name, kind);
    if (edns != 0) build.opt(edns, dnssec_ok);
    send_raw(build.done());
    return id_;
  }
  void send_raw(const Packet& packet) {
    const auto bytes =
        by_tcp_ ? joined({two(static_cast<unsigned>(packet.size())), packet}) : packet;
    require(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) >= 0, "send");
  }
  std::optional<Packet> receive_raw(std::chrono::milliseconds patience = 10s) {
    pollfd polled{fd_.get(), POLLIN, 0};
    if (!by_tcp_) {
      if (::poll(&polled, 1, static_cast<int>(patience.count())) <= 0) return std::nullopt;
      Packet packet(65'536);
      const auto got = ::recv(fd_.get(), packet.data(), packet.size(), 0);
      if (got < 0) return std::nullopt;
      packet.resize(static_cast<std::size_t>(got));
      return packet;
    }
    for (;;) {
      if (in_.size() >= 2) {
        const std::size_t size = static_cast<std::size_t>(in_[0]) << 8 | in_[1];
        if (in_.size() >= 2 + size) {
          Packet packet(in_.begin() + 2, in_.begin() + 2 + static_cast<std::ptrdiff_t>(size));
          in_.erase(in_.begin(), in_.begin() + 2 + static_cast<std::ptrdiff_t>(size));
          return packet;
        }
      }
      if (::poll(&polled, 1, static_cast<int>(patience.count())) <= 0) return std::nullopt;
      std::array<std::uint8_t, 16'384> chunk;
      const auto got = ::recv(fd_.get(), chunk.data(), chunk.size(), 0);
      if (got <= 0) return std::nullopt;
      in_.insert(in_.end(), chunk.begin(), chunk.begin() + got);
    }
  }
  Reply receive() {
    auto packet = receive_raw();
    if (!packet) throw std::runtime_error("no answer came");
    return read_reply(*std::move(packet));
  }
  Reply ask(std::string_view name, unsigned kind, unsigned edns = 1232, bool dnssec_ok = false) {
    send(name, kind, edns, dnssec_ok);
    return receive();
  }
  // Whether an answer lies there already.
  [[nodiscard]] bool has_answer() const {
    char byte;
    return ::recv(fd_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
  }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void half_close() { ::shutdown(fd_.get(), SHUT_WR); }

 private:
  Fd fd_;
  bool by_tcp_;
  std::uint16_t id_ = 0;
  Packet in_;
};

}  // namespace dns_test
