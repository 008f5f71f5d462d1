// The service tables: C functions over PluginRun and Core.
#include <cstring>

#include "plugins/plugin_run.hpp"

namespace sluice {
namespace {

constexpr std::size_t kMostListeners = 4096;

std::shared_ptr<PluginRun> run_of(sluice_host* host) {
  const std::lock_guard lock(host->mutex);
  return host->run;
}

// The barrier downwards: an allocation that fails in the host must not unwind into the plugin.
template <typename Work>
int served(sluice_host* host, const char* service, Work&& work) noexcept {
  try {
    const auto run = run_of(host);
    if (!run) return -ESHUTDOWN;
    if (const int refused = run->admit(service); refused != 0) return refused;
    return work(*run);
  } catch (const std::bad_alloc&) {
    return -ENOMEM;
  } catch (...) {
    return -EIO;
  }
}

template <typename Work>
int served_any(sluice_host* host, const char* service, Work&& work) noexcept {
  try {
    const auto run = run_of(host);
    if (!run) return -ESHUTDOWN;
    if (const int refused = run->admit_any(service); refused != 0) return refused;
    return work(*run);
  } catch (const std::bad_alloc&) {
    return -ENOMEM;
  } catch (...) {
    return -EIO;
  }
}

int refuse(const Error& error, sluice_applied* into = nullptr) {
  abi::write_error(into, error);
  return -(error.code > 0 ? error.code : EIO);
}
int answer(const Status& status, sluice_applied* into = nullptr) {
  return status ? 0 : refuse(status.error(), into);
}
int answer(const Result<Applied>& result, sluice_applied* into) {
  if (!result) return refuse(result.error(), into);
  abi::write_applied(into, *result);
  return 0;
}

// ---- common -------------------------------------------------------------------------------------

void log(sluice_host* host, std::uint32_t level, sluice_string message) noexcept {
  try {
    if (const auto run = run_of(host)) run->log(std::min(level, 4u), abi::view(message));
  } catch (...) {  // a line that cannot be formatted is not worth a plugin's life
  }
}
std::uint64_t now(sluice_host*) noexcept {
  return boot_now().nanoseconds;
}
int timer_set(sluice_host* host, std::uint64_t id, std::uint64_t delay_ns) noexcept {
  return served(host, "timer_set",
                [&](PluginRun& run) { return answer(run.strand().set_timer(id, delay_ns)); });
}
int timer_cancel(sluice_host* host, std::uint64_t id) noexcept {
  return served(host, "timer_cancel",
                [&](PluginRun& run) { return answer(run.strand().cancel_timer(id)); });
}
int fd_watch(sluice_host* host, int fd, std::uint32_t events) noexcept {
  return served(host, "fd_watch",
                [&](PluginRun& run) { return answer(run.strand().watch(fd, events)); });
}
int fd_unwatch(sluice_host* host, int fd) noexcept {
  return served(host, "fd_unwatch",
                [&](PluginRun& run) { return answer(run.strand().unwatch(fd)); });
}
int wake(sluice_host* host, std::uint64_t token) noexcept {
  try {
    const auto run = run_of(host);
    return run ? run->wake(token) : -ESHUTDOWN;
  } catch (...) {
    return -ENOMEM;
  }
}
void failed(sluice_host* host, sluice_string reason) noexcept {
  try {
    if (const auto run = run_of(host)) run->failed(std::string(abi::view(reason)));
  } catch (...) {  // out of memory: it goes on, and will say so again
  }
}

int keep_fd(sluice_host* host, sluice_string raw_name, int fd) noexcept {
  return served(host, "keep_fd", [&](PluginRun& run) {
    const auto name = abi::fd_name_from(raw_name);
    if (!name) return refuse(name.error());
    return run.down([&](Core& core) { return answer(core.keep_fd(run.instance(), *name, fd)); });
  });
}
int kept_fd(sluice_host* host, sluice_string raw_name) noexcept {
  return served_any(host, "kept_fd", [&](PluginRun& run) {
    const auto name = abi::fd_name_from(raw_name);
    if (!name) return refuse(name.error());
    return run.down([&](Core& core) {
      const auto fd = core.kept_fd(run.instance(), *name);
      return fd ? *fd : refuse(fd.error());
    });
  });
}
int drop_fd(sluice_host* host, sluice_string raw_name) noexcept {
  return served(host, "drop_fd", [&](PluginRun& run) {
    const auto name = abi::fd_name_from(raw_name);
    if (!name) return refuse(name.error());
    return run.down([&](Core& core) { return answer(core.drop_fd(run.instance(), *name)); });
  });
}

// ---- discovery ----------------------------------------------------------------------------------

int attach(sluice_host* host, const sluice_target* raw_target, const sluice_label* raw_labels,
           std::size_t label_count, sluice_attachment* id, sluice_applied* message) noexcept {
  return served(host, "attach", [&](PluginRun& run) {
    const auto target = abi::target_from(raw_target);
    if (!target) return refuse(target.error(), message);
    const auto labels = abi::labels_from(raw_labels, label_count);
    if (!labels) return refuse(labels.error(), message);
    return run.down([&](Core& core) {
      const auto result = core.attach(run.instance(), *target, *labels);
      if (!result) return refuse(result.error(), message);
      if (id != nullptr) *id = result->value;
      abi::write_applied(message, {});
      return 0;
    });
  });
}
int detach(sluice_host* host, sluice_attachment id, sluice_string reason) noexcept {
  return served(host, "detach", [&](PluginRun& run) {
    const std::string text(abi::view(reason));
    return run.down([&](Core& core) { return answer(core.detach(run.instance(), {id}, text)); });
  });
}
int relabel(sluice_host* host, sluice_attachment id, const sluice_label* raw_labels,
            std::size_t label_count) noexcept {
  return served(host, "relabel", [&](PluginRun& run) {
    const auto labels = abi::labels_from(raw_labels, label_count);
    if (!labels) return refuse(labels.error());
    return run.down(
        [&](Core& core) { return answer(core.relabel(run.instance(), {id}, *labels)); });
  });
}
int listed(sluice_host* host) noexcept {
  return served(host, "listed", [&](PluginRun& run) {
    return run.down([&](Core& core) { return answer(core.listed(run.instance())); });
  });
}

// ---- policy -------------------------------------------------------------------------------------

int replace_layer(sluice_host* host, sluice_attachment id, const sluice_layer* raw,
                  sluice_applied* applied) noexcept {
  return served(host, "replace_layer", [&](PluginRun& run) {
    auto layer = abi::layer_from(raw);
    if (!layer) return refuse(layer.error(), applied);
    return run.down([&](Core& core) {
      return answer(core.replace_layer(run.instance(), {id}, std::move(*layer)), applied);
    });
  });
}
int update_layer(sluice_host* host, sluice_attachment id, std::uint64_t base,
                 const sluice_rule* raw_add, std::size_t add_count, const sluice_rule* raw_remove,
                 std::size_t remove_count, sluice_applied* applied) noexcept {
  return served(host, "update_layer", [&](PluginRun& run) {
    auto add = abi::rules_from(raw_add, add_count);
    if (!add) return refuse(add.error(), applied);
    auto remove = abi::rules_from(raw_remove, remove_count);
    if (!remove) return refuse(remove.error(), applied);
    return run.down([&](Core& core) {
      return answer(core.update_layer(run.instance(), {id}, Generation{base}, std::move(*add),
                                      std::move(*remove)),
                    applied);
    });
  });
}
int withdraw_layer(sluice_host* host, sluice_attachment id, sluice_applied* applied) noexcept {
  return served(host, "withdraw_layer", [&](PluginRun& run) {
    return run.down(
        [&](Core& core) { return answer(core.withdraw_layer(run.instance(), {id}), applied); });
  });
}
int replace_layers(sluice_host* host, const sluice_attachment* ids, const sluice_layer* raw,
                   std::size_t count, std::size_t* failed_index, sluice_applied* applied) noexcept {
  return served(host, "replace_layers", [&](PluginRun& run) {
    if (count > 0 && (ids == nullptr || raw == nullptr))
      return refuse({.message = "replace_layers: a count and no lists", .code = EINVAL}, applied);
    std::vector<LayerChange> changes;
    changes.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      auto layer = abi::layer_from(abi::element(raw, i));
      if (!layer) {
        if (failed_index != nullptr) *failed_index = i;
        return refuse(layer.error(), applied);
      }
      changes.push_back({{ids[i]}, std::move(*layer)});
    }
    return run.down([&](Core& core) {
      const auto status = core.replace_layers(run.instance(), std::move(changes));
      if (!status) {
        if (failed_index != nullptr)
          *failed_index =
              status.error().item_index == Error::kNoIndex ? SIZE_MAX : status.error().item_index;
        return refuse(status.error(), applied);
      }
      abi::write_applied(applied, {});
      return 0;
    });
  });
}

// ---- resolver -----------------------------------------------------------------------------------

int learn(sluice_host* host, sluice_attachment id, const sluice_push* raw,
          sluice_applied* applied) noexcept {
  return served_any(host, "learn", [&](PluginRun& run) {
    abi::PushFrom push;
    if (auto status = push.read(raw); !status) return refuse(status.error(), applied);
    return run.direct([&](Core& core) {
      const auto status = core.learn(run.instance(), {id}, push.get());
      if (status) abi::write_applied(applied, {});
      return answer(status, applied);
    });
  });
}
int revoke(sluice_host* host, sluice_attachment id, const sluice_address* raw,
           std::size_t count) noexcept {
  return served_any(host, "revoke", [&](PluginRun& run) {
    const auto addresses = abi::addresses_from(raw, count);
    if (!addresses) return refuse(addresses.error());
    return run.direct(
        [&](Core& core) { return answer(core.revoke(run.instance(), {id}, *addresses)); });
  });
}
int serve(sluice_host* host, const sluice_listener* raw, std::size_t count) noexcept {
  return served(host, "serve", [&](PluginRun& run) {
    if (count > kMostListeners) return -E2BIG;
    if (count > 0 && (raw == nullptr || raw->size < sizeof *raw)) return -EINVAL;
    std::vector<int> sockets;
    for (std::size_t i = 0; i < count; ++i)
      sockets.push_back(abi::known_part(abi::element(raw, i)).fd);
    return run.down([&](Core& core) { return answer(core.serve(run.instance(), sockets)); });
  });
}
int asker_of_mark(sluice_host* host, std::uint32_t mark, sluice_attachment* id) noexcept {
  return served_any(host, "asker_of_mark", [&](PluginRun& run) {
    if (id == nullptr) return -EINVAL;
    return run.direct([&](Core& core) {
      const auto asker = core.asker_of_mark(run.instance(), mark);
      if (!asker) return refuse(asker.error());
      *id = asker->value;
      return 0;
    });
  });
}
int asker_of_stream(sluice_host* host, int accepted, sluice_attachment* id,
                    sluice_endpoint* asked) noexcept {
  return served_any(host, "asker_of_stream", [&](PluginRun& run) {
    if (id == nullptr) return -EINVAL;
    return run.direct([&](Core& core) {
      const auto asker = core.asker_of_stream(run.instance(), accepted);
      if (!asker) return refuse(asker.error());
      *id = asker->attachment.value;
      abi::write_endpoint(asked, asker->asked);
      return 0;
    });
  });
}
int ask(sluice_host* host, const sluice_query* raw, std::uint64_t deadline) noexcept {
  return served_any(host, "ask", [&](PluginRun& run) {
    auto query = NameQuery::from(raw);
    if (!query) return refuse(query.error());
    return answer(run.routes().ask(run.shared_from_this(), std::move(*query), BootTime{deadline}));
  });
}
int pushed(sluice_host* host, std::uint64_t push_id, int result, sluice_string message) noexcept {
  return served_any(host, "pushed", [&](PluginRun& run) {
    if (result > 0) return -EINVAL;
    const auto text = abi::view(message).substr(0, sizeof(sluice_applied::message));
    return answer(run.routes().pushed(run, push_id, -result, std::string(text)));
  });
}
int report(sluice_host* host, const sluice_query_report* raw, std::size_t count) noexcept {
  return served_any(host, "report",
                    [&](PluginRun& run) { return answer(run.routes().report(raw, count)); });
}

// ---- decider, answer source --------------------------------------------------------------------

int decided(sluice_host* host, std::uint64_t query_id, const sluice_decision_made* raw) noexcept {
  return served_any(host, "decided", [&](PluginRun& run) {
    auto decision = NameDecision::from(raw);
    if (!decision) return refuse(decision.error());
    return answer(run.routes().decided(run, query_id, std::move(*decision)));
  });
}
int push_answer(sluice_host* host, const sluice_answer* raw, std::uint64_t deadline,
                sluice_applied* applied) noexcept {
  return served(host, "push_answer", [&](PluginRun& run) {
    auto pushed_answer = NameAnswer::from(raw);
    if (!pushed_answer) return refuse(pushed_answer.error(), applied);
    Status status;
    run.strand().waiting(
        [&] { status = run.routes().push(run, std::move(*pushed_answer), BootTime{deadline}); });
    if (status) abi::write_applied(applied, {});
    return answer(status, applied);
  });
}

// ---- observer -----------------------------------------------------------------------------------

int counters(sluice_host* host, sluice_attachment id, sluice_counters_info* into) noexcept {
  return served(host, "counters", [&](PluginRun& run) {
    return run.down([&](Core& core) {
      const auto result = core.counters({id});
      if (!result) return refuse(result.error());
      abi::write_counters(into, *result);
      return 0;
    });
  });
}
int list(sluice_host* host, void (*each)(void*, const sluice_attachment_info*),
         void* context) noexcept {
  return served(host, "list", [&](PluginRun& run) {
    std::vector<AttachmentInfo> all;
    const int result = run.down([&](Core& core) {
      all = core.list();
      return 0;
    });
    if (result < 0) return result;
    for (const auto& info : all) each(context, abi::RawInfo(info).get());
    return 0;
  });
}

constexpr sluice_common_services kCommon{.size = sizeof(sluice_common_services),
                                         .log = log,
                                         .now = now,
                                         .timer_set = timer_set,
                                         .timer_cancel = timer_cancel,
                                         .fd_watch = fd_watch,
                                         .fd_unwatch = fd_unwatch,
                                         .wake = wake,
                                         .failed = failed,
                                         .keep_fd = keep_fd,
                                         .kept_fd = kept_fd,
                                         .drop_fd = drop_fd};
constexpr sluice_discovery_services kDiscovery{.size = sizeof(sluice_discovery_services),
                                               .attach = attach,
                                               .detach = detach,
                                               .relabel = relabel,
                                               .listed = listed};
constexpr sluice_policy_services kPolicy{.size = sizeof(sluice_policy_services),
                                         .replace_layer = replace_layer,
                                         .update_layer = update_layer,
                                         .withdraw_layer = withdraw_layer,
                                         .replace_layers = replace_layers};
constexpr sluice_resolver_services kResolver{.size = sizeof(sluice_resolver_services),
                                             .learn = learn,
                                             .revoke = revoke,
                                             .serve = serve,
                                             .asker_of_mark = asker_of_mark,
                                             .asker_of_stream = asker_of_stream,
                                             .ask = ask,
                                             .pushed = pushed,
                                             .report = report};
constexpr sluice_decider_services kDecider{.size = sizeof(sluice_decider_services),
                                           .decided = decided};
constexpr sluice_answer_source_services kAnswerSource{.size = sizeof(sluice_answer_source_services),
                                                      .push_answer = push_answer};
constexpr sluice_observer_services kObserver{
    .size = sizeof(sluice_observer_services), .counters = counters, .list = list};

}  // namespace

sluice_services services_for(sluice_host* host, std::uint32_t roles) {
  const auto held = [&](std::uint32_t role, const auto& table) {
    return (roles & role) != 0 ? &table : nullptr;
  };
  return {.size = sizeof(sluice_services),
          .abi_minor = SLUICE_ABI_MINOR,
          .host = host,
          .common = &kCommon,
          .discovery = held(SLUICE_ROLE_DISCOVERY, kDiscovery),
          .policy = held(SLUICE_ROLE_POLICY_SOURCE, kPolicy),
          .resolver = held(SLUICE_ROLE_RESOLVER, kResolver),
          .observer = held(SLUICE_ROLE_OBSERVER, kObserver),
          .decider = held(SLUICE_ROLE_DECIDER, kDecider),
          .answer_source = held(SLUICE_ROLE_ANSWER_SOURCE, kAnswerSource)};
}

}  // namespace sluice
