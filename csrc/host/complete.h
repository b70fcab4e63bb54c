/* SPDX-License-Identifier: MIT */
/* Completion of Lua names: globals and keywords, fields and methods of values. */
#ifndef FCVM_HOST_COMPLETE_H
#define FCVM_HOST_COMPLETE_H

#include <lua.h>

#include "host/line.h"

/* What could stand at the end of text[0..size). Runs no Lua code but __index of fcvm's own values.
 * Never raises. */
void complete_names(lua_State *L, const char *text, size_t size, struct line_completions *ret);

#endif
