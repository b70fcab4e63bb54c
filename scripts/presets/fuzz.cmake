# SPDX-License-Identifier: MIT
# cmake -C scripts/presets/fuzz.cmake -S . -B build-fuzz -G Ninja
set(CMAKE_BUILD_TYPE Debug CACHE STRING "")
set(CMAKE_C_COMPILER clang CACHE STRING "")
set(FCVM_FUZZ ON CACHE BOOL "")
