// SPDX-License-Identifier: Apache-2.0
// The SDK's address, so that nothing is converted between an answer and the host's learn().
#pragma once

#include <sluice/types.hpp>

namespace sluice::dns {

using Address = sdk::Address;

}  // namespace sluice::dns
