/* SPDX-License-Identifier: MIT */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void (*log_sink)(void *data, int level, const char *text); /* lock */
static void *log_data;                                            /* lock */

void fcvm_log_to(void (*sink)(void *data, int level, const char *text), void *data)
{
	pthread_mutex_lock(&lock);
	log_sink = sink;
	log_data = data;
	pthread_mutex_unlock(&lock);
}

void fcvm_say(int level, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	/* Under the lock, so that lines do not mix and a sink that was taken away is not called any more. */
	pthread_mutex_lock(&lock);
	if (log_sink)
		log_sink(log_data, level, text);
	pthread_mutex_unlock(&lock);
}
