// Small policies for packet tests.
#pragma once

#include <initializer_list>
#include <span>

#include "policy/compiler.hpp"

namespace sluice::test {

inline Layer allow(std::initializer_list<const char*> prefixes, Mode mode = Mode::allowlist) {
  Layer layer;
  layer.mode = mode;
  for (const char* text : prefixes) {
    Rule rule;
    rule.action = Action::allow;
    rule.prefix = Prefix::parse(text).value();
    layer.rules.push_back(rule);
  }
  return layer;
}

inline Layer deny(std::initializer_list<const char*> prefixes, Mode mode = Mode::allowlist) {
  Layer layer = allow(prefixes, mode);
  for (Rule& rule : layer.rules) rule.action = Action::deny;
  return layer;
}

inline CompiledPolicy compiled(const Layer& layer) {
  const LayerInput input{&layer, true};
  return compile(std::span(&input, 1), Floor{}, boot_now()).value();
}

}  // namespace sluice::test
