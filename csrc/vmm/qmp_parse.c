/* SPDX-License-Identifier: MIT */
/* What one line of QMP says. */
#include <errno.h>
#include <limits.h>

#include "base/fail.h"
#include "vmm/qmp.h"

static int version_of(const struct fcvm_json *qemu, const char *key)
{
	int64_t n = fcvm_json_int(qemu, key, 0);

	return n < 0 || n > 9999 ? 0 : (int)n;
}

static int classify(struct fcvm_qmp_message *m, struct fcvm_err *err)
{
	const struct fcvm_json *greeting = fcvm_json_get(m->json, "QMP");
	const struct fcvm_json *error = fcvm_json_get(m->json, "error");
	const char *event = fcvm_json_string(m->json, "event", NULL);

	m->id = fcvm_json_int(m->json, "id", -1);
	if (greeting) {
		const struct fcvm_json *qemu = fcvm_json_get(fcvm_json_get(greeting, "version"), "qemu");

		m->kind = FCVM_QMP_GREETING;
		m->version[0] = version_of(qemu, "major");
		m->version[1] = version_of(qemu, "minor");
		m->version[2] = version_of(qemu, "micro");
	} else if (event) {
		m->kind = FCVM_QMP_EVENT;
		m->text = event;
	} else if (error) {
		m->kind = FCVM_QMP_ERROR;
		m->text = fcvm_json_string(error, "desc", "an error without a description");
		m->class = fcvm_json_string(error, "class", "GenericError");
	} else if (fcvm_json_get(m->json, "return")) {
		m->kind = FCVM_QMP_RETURN;
	} else {
		return fcvm_fail(err, -EBADMSG, "neither greeting, answer, error nor event");
	}
	return 0;
}

int fcvm_qmp_parse(const char *line, size_t size, struct fcvm_qmp_message *ret, struct fcvm_err *err)
{
	struct fcvm_qmp_message m = {.id = -1};
	int k;

	if (size > FCVM_QMP_LINE)
		return fcvm_fail(err, -EBADMSG, "a line of more than %d bytes", FCVM_QMP_LINE);
	k = fcvm_json_parse(line, size, &m.json, err);
	if (k < 0)
		return k;
	k = classify(&m, err);
	if (k < 0) {
		fcvm_qmp_message_done(&m);
		return k;
	}
	*ret = m;
	return 0;
}

void fcvm_qmp_message_done(struct fcvm_qmp_message *m)
{
	fcvm_json_free(m->json);
	*m = (struct fcvm_qmp_message){.id = -1};
}
