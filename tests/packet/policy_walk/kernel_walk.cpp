#include "packet/policy_walk/kernel_walk.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <policy_walk_program.skel.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "base/fd.hpp"

namespace sluice::test {
namespace {

// Copies to the start of an mmapable array.
Status fill(int map, const void* data, std::size_t size) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t length = (size + page - 1) / page * page;
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
  if (memory == MAP_FAILED) return fail("map of {} bytes: mmap: {}", size, std::strerror(errno));
  std::memcpy(memory, data, size);
  munmap(memory, length);
  return {};
}

}  // namespace

struct KernelWalk::State {
  policy_walk_program* skeleton = nullptr;
  Fd blob;
  std::uint32_t questions = 0;
  ~State() { policy_walk_program__destroy(skeleton); }
};

KernelWalk::KernelWalk(std::unique_ptr<State> state) : state_(std::move(state)) {}
KernelWalk::KernelWalk(KernelWalk&&) noexcept = default;
KernelWalk& KernelWalk::operator=(KernelWalk&&) noexcept = default;
KernelWalk::~KernelWalk() = default;

std::size_t KernelWalk::question_count() const {
  return state_->questions;
}

Result<KernelWalk> KernelWalk::load(const CompiledPolicy& policy,
                                    std::span<const Question> questions, Storage storage) {
  auto state = std::make_unique<State>();
  state->questions = static_cast<std::uint32_t>(std::bit_floor(questions.size()));
  state->skeleton = policy_walk_program__open();
  if (state->skeleton == nullptr) return fail("cannot open the walk: {}", std::strerror(errno));
  auto& maps = state->skeleton->maps;
  const auto elements =
      static_cast<std::uint32_t>(std::max<std::size_t>(1, policy.elements.size()));
  bpf_map__set_max_entries(maps.heap, storage == Storage::heap ? elements + 1 : 1);
  bpf_map__set_max_entries(maps.questions, state->questions);
  bpf_map__set_max_entries(maps.answers, state->questions);
  if (policy_walk_program__load(state->skeleton) != 0)
    return fail("cannot load the walk: {}; are you root?", std::strerror(errno));

  const std::size_t size = policy.elements.size() * sizeof(sluice_element);
  sluice_policy descriptor = policy.descriptor;
  if (storage == Storage::blob) {
    LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_MMAPABLE | BPF_F_INNER_MAP);
    state->blob =
        Fd(bpf_map_create(BPF_MAP_TYPE_ARRAY, "blob", 4, sizeof(sluice_blob_page),
                          (elements + SLUICE_PAGE_ELEMENTS - 1) / SLUICE_PAGE_ELEMENTS, &options));
    if (!state->blob) return fail("cannot create a blob: {}", std::strerror(errno));
    const std::uint32_t key = 1;
    const int fd = state->blob.get();
    if (auto filled = fill(fd, policy.elements.data(), size); !filled)
      return std::unexpected(filled.error());
    if (bpf_map_update_elem(bpf_map__fd(maps.blobs), &key, &fd, BPF_ANY) != 0)
      return fail("cannot store the blob: {}", std::strerror(errno));
    descriptor.blob = 1;
  } else {
    // Base 1, so that a walk which forgets the base is found out.
    std::vector<sluice_element> shifted(1);
    std::memset(shifted.data(), 0xee, sizeof(sluice_element));
    shifted.insert(shifted.end(), policy.elements.begin(), policy.elements.end());
    if (auto filled =
            fill(bpf_map__fd(maps.heap), shifted.data(),
                 std::min(shifted.size(), std::size_t{elements} + 1) * sizeof(sluice_element));
        !filled)
      return std::unexpected(filled.error());
    descriptor.base = 1;
  }
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(bpf_map__fd(maps.policies), &zero, &descriptor, BPF_ANY) != 0)
    return fail("cannot store the policy: {}", std::strerror(errno));
  if (auto filled =
          fill(bpf_map__fd(maps.questions), questions.data(), state->questions * sizeof(Question));
      !filled)
    return std::unexpected(filled.error());
  return KernelWalk(std::move(state));
}

static Result<double> run(int program, std::uint32_t repeat) {
  std::array<std::uint8_t, 64> packet{};
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet.data(),
              .data_size_in = static_cast<std::uint32_t>(packet.size()),
              .repeat = static_cast<int>(repeat));
  if (bpf_prog_test_run_opts(program, &options) != 0)
    return fail("BPF_PROG_TEST_RUN: {}", std::strerror(errno));
  if (options.retval == 0xffffffff) return fail("the walk found no question or no policy");
  return static_cast<double>(options.duration);
}

Result<std::vector<std::uint32_t>> KernelWalk::verdicts() {
  auto* skeleton = state_->skeleton;
  skeleton->bss->next = 0;
  skeleton->bss->mask = state_->questions - 1;
  if (auto ran = run(bpf_program__fd(skeleton->progs.verdicts), state_->questions); !ran)
    return std::unexpected(ran.error());
  std::vector<std::uint32_t> answers(state_->questions);
  for (std::uint32_t i = 0; i < state_->questions; ++i)
    if (bpf_map_lookup_elem(bpf_map__fd(skeleton->maps.answers), &i, &answers[i]) != 0)
      return fail("cannot read answer {}: {}", i, std::strerror(errno));
  return answers;
}

Result<double> KernelWalk::nanoseconds(Program program, bool same, std::uint32_t repeat) {
  auto* skeleton = state_->skeleton;
  skeleton->bss->next = 0;
  skeleton->bss->mask = same ? 0 : state_->questions - 1;
  const auto& programs = skeleton->progs;
  const bpf_program* chosen = program == Program::noop            ? programs.noop
                              : program == Program::question_only ? programs.question_only
                              : program == Program::lookup4       ? programs.lookup4
                                                                  : programs.lookup6;
  return run(bpf_program__fd(chosen), repeat);
}

}  // namespace sluice::test
