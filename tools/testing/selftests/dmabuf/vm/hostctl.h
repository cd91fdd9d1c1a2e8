/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Ask the host of the test machine for something that the guest cannot do
 * itself. qemu-agent is at the other end and lists what is allowed.
 */
#ifndef SELFTESTS_DMABUF_VM_HOSTCTL_H
#define SELFTESTS_DMABUF_VM_HOSTCTL_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define HOST_QMP_TIMEOUT_MS	60000

/**
 * host_qmp - have QEMU run one QMP command
 * @json_cmd: the command, in one line, for example
 *	{"execute":"device_del","arguments":{"id":"peer"}}
 *	{"execute":"device_add","arguments":{"id":"peer","bus":"rp1",
 *	 "driver":"ivshmem-plain"}}
 *
 * device_del takes an id, device_add id, driver (edu or ivshmem-plain), bus,
 * addr and multifunction. Ids and buses are those of topology.mk. Memory that
 * is added is new and zero.
 *
 * device_del returns when QEMU has *asked* the guest to let go, some seconds
 * before the device is gone: look for that in sysfs. device_add waits for the
 * end of a removal of the same id.
 *
 * Return: 0 once QEMU has accepted the command, -ENODEV without a host that
 * listens (skip the test), -EPERM for a command that the agent does not pass
 * on, -EIO when QEMU refused it (reason on stderr), -ETIMEDOUT without an
 * answer.
 */
static inline int host_qmp(const char *json_cmd)
{
	const char *path = getenv("VM_HOST");
	char answer[512];
	struct termios tio;
	struct pollfd pfd;
	size_t len = 0;
	int ret = 0;

	if (!path)
		return -ENODEV;
	pfd.fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (pfd.fd < 0)
		return -ENODEV;
	pfd.events = POLLIN;

	/* Neither echo nor line ends of our own; drop what a dead test left. */
	if (!tcgetattr(pfd.fd, &tio)) {
		cfmakeraw(&tio);
		tio.c_cflag |= CLOCAL;
		tcsetattr(pfd.fd, TCSANOW, &tio);
	}
	tcflush(pfd.fd, TCIFLUSH);

	if (dprintf(pfd.fd, "%s\n", json_cmd) < 0)
		ret = -EIO;

	while (!ret && len < sizeof(answer) - 1) {
		if (poll(&pfd, 1, HOST_QMP_TIMEOUT_MS) <= 0)
			ret = -ETIMEDOUT;
		else if (read(pfd.fd, answer + len, 1) != 1)
			ret = -EIO;
		else if (answer[len++] == '\n')
			break;
	}
	close(pfd.fd);
	if (ret)
		return ret;

	answer[len] = '\0';
	if (!strcmp(answer, "ok\n"))
		return 0;
	fprintf(stderr, "# host: %s", answer);
	return strncmp(answer, "denied", 6) ? -EIO : -EPERM;
}

#endif /* SELFTESTS_DMABUF_VM_HOSTCTL_H */
