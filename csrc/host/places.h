/* SPDX-License-Identifier: MIT */
/* Where the program's own Lua modules and scripts are: installed beside it, or in the source tree.
 */
#ifndef FCVM_HOST_PLACES_H
#define FCVM_HOST_PLACES_H

/* The folder that holds fcvm/ (Lua modules); malloc'ed, or NULL if there is none. */
char *place_of_lua(void);
/* The folder of the shipped scripts; malloc'ed, or NULL. */
char *place_of_scripts(void);

#endif
