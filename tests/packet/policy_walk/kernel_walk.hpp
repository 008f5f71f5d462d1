// A compiled policy in kernel maps, asked through BPF_PROG_TEST_RUN. Needs CAP_BPF.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "policy/compiler.hpp"

namespace sluice::test {

struct Question {  // as in policy_walk.bpf.c
  std::array<std::uint8_t, 16> address{};
  std::uint64_t now = 0;
  std::uint32_t flags = 0;
  std::uint16_t port = 0;
  std::uint8_t protocol = 0;
  std::uint8_t family = 0;
};

enum class Storage { heap, blob };
enum class Program { noop, question_only, lookup4, lookup6 };

class KernelWalk {
 public:
  // `questions` is rounded down to a power of two.
  [[nodiscard]] static Result<KernelWalk> load(const CompiledPolicy& policy,
                                               std::span<const Question> questions,
                                               Storage storage);
  KernelWalk(KernelWalk&&) noexcept;
  KernelWalk& operator=(KernelWalk&&) noexcept;
  ~KernelWalk();

  [[nodiscard]] std::size_t question_count() const;
  // One verdict (SLUICE_LEAF_) per question.
  [[nodiscard]] Result<std::vector<std::uint32_t>> verdicts();
  // Nanoseconds per run, the mean of `repeat` runs; `same`: the first question each time.
  [[nodiscard]] Result<double> nanoseconds(Program program, bool same, std::uint32_t repeat);

 private:
  struct State;
  explicit KernelWalk(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sluice::test
