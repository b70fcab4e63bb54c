# SPDX-License-Identifier: MIT
# cmake -C scripts/presets/asan.cmake -S . -B build-asan -G Ninja
set(CMAKE_BUILD_TYPE Debug CACHE STRING "")
set(FCVM_SANITIZE address,undefined CACHE STRING "")
