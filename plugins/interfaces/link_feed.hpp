// The kernel's link events as one ordered stream: everything that exists, then every change.
//
// Listing and events share one socket, so that what is read last is what is newest: with a second
// socket for the dump, an event older than the dump would be applied after it and, say, take a
// filter off a device for the time until the next event. Subscribed before the dump is asked for,
// so that nothing falls between the two.
//
// A dump that the kernel could not keep consistent (NLM_F_DUMP_INTR) is asked for again. When the
// socket overflowed (ENOBUFS) it is replaced by a fresh one and everything is listed again.
//
// Speaks of the network namespace of the thread that calls open(). Single-threaded otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "interfaces/link.hpp"

namespace sluice::interfaces {

class LinkSink {
 public:
  virtual ~LinkSink() = default;
  // Every link that exists is reported by changed() before listing_complete(); what is not is gone.
  // A second listing_started() without a completion: the listing begins anew.
  virtual void listing_started() = 0;
  virtual void listing_complete() = 0;
  virtual void changed(const Link& link) = 0;
  virtual void removed(std::uint32_t ifindex) = 0;
  virtual void left_bridge(std::uint32_t ifindex, std::uint32_t bridge) = 0;
};

class LinkFeed {
 public:
  struct Settings {
    // Bytes. Room for about a thousand events: each is charged with 4 KiB. Not resident until used.
    int receive_buffer = 4 << 20;
  };

  // Opens nothing.
  explicit LinkFeed(LinkSink& sink) : LinkFeed(sink, Settings{}) {}
  LinkFeed(LinkSink& sink, Settings settings) : sink_(sink), settings_(settings) {}
  ~LinkFeed();
  LinkFeed(const LinkFeed&) = delete;
  LinkFeed& operator=(const LinkFeed&) = delete;

  // Subscribes and asks for the listing; replaces an open socket. Throws std::system_error.
  void open();
  // -1 before open(). Becomes readable when read() has work.
  [[nodiscard]] int fd() const { return fd_; }

  // Hands at most `datagrams` datagrams to the sink. `overflow`: events were lost; call open()
  // again (after taking the old fd out of any watch). Throws std::system_error.
  enum class Outcome : std::uint8_t { drained, more, overflow };
  [[nodiscard]] Outcome read(std::size_t datagrams = 256);

 private:
  void request_dump();
  Outcome take(std::size_t length);

  LinkSink& sink_;
  Settings settings_;
  int fd_ = -1;
  std::uint32_t port_ = 0;      // our netlink address
  std::uint32_t sequence_ = 0;  // of the dump under way or last done
  bool interrupted_ = false;    // the dump under way has missed something
  std::vector<char> buffer_;
};

}  // namespace sluice::interfaces
