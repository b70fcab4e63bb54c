# SPDX-License-Identifier: MIT
# cmake -C scripts/presets/release.cmake -S . -B build -G Ninja
set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "")
