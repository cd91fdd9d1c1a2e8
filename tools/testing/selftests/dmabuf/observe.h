/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a person can look at: files of debugfs and of proc, and the trace
 */
#ifndef SELFTESTS_DMABUF_OBSERVE_H
#define SELFTESTS_DMABUF_OBSERVE_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define TRACING		"/sys/kernel/tracing/"

/* All of a file that is made as it is read, with a 0 at the end */
static inline bool slurp(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return false;
	while (len < size - 1 && (n = read(fd, text + len, size - 1 - len)) > 0)
		len += n;
	text[len] = '\0';
	close(fd);
	return len > 0;
}

static inline bool spit(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* A line that has all of the words, in this order */
static inline bool has_line(const char *text, const char *const words[])
{
	for (; text; text = strchr(text, '\n') ? strchr(text, '\n') + 1 : NULL) {
		const char *end = strchrnul(text, '\n'), *at = text;
		unsigned int i;

		for (i = 0; words[i]; i++) {
			at = strstr(at, words[i]);
			if (!at || at >= end)
				break;
			at += strlen(words[i]);
		}
		if (!words[i])
			return true;
	}
	return false;
}

#define line_of(_text, ...)	has_line(_text, (const char *const []) { __VA_ARGS__, NULL })
#define expect_line(_text, ...)							\
do {										\
	const char *__text = (_text);						\
										\
	EXPECT_TRUE(line_of(__text, __VA_ARGS__)) {				\
		TH_LOG("no line with " #__VA_ARGS__);				\
	}									\
} while (0)

/* Is each event there, and after the one before? */
static inline bool in_order(const char *text, const char *const events[])
{
	for (; *events; events++) {
		text = strstr(text, *events);
		if (!text)
			return false;
		text += strlen(*events);
	}
	return true;
}

#define expect_order(_text, ...)						\
do {										\
	const char *const __events[] = { __VA_ARGS__, NULL };			\
	const char *__text = (_text);						\
										\
	EXPECT_TRUE(in_order(__text, __events)) {				\
		TH_LOG("%s", __text);						\
	}									\
} while (0)

/* What is traced since the last time that this was turned on is in TRACING "trace" */
static inline bool trace(bool on)
{
	return (!on || spit(TRACING "trace", "")) &&
	       spit(TRACING "events/dma_buf/enable", on ? "1" : "0") &&
	       spit(TRACING "events/vfio_pci/enable", on ? "1" : "0") &&
	       spit(TRACING "events/iommufd/enable", on ? "1" : "0");
}

static inline bool read_fdinfo(int dmabuf, char *text, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", dmabuf);
	return slurp(path, text, size);
}

static inline bool is_in_state(int dmabuf, const char *state)
{
	char text[8192];

	return read_fdinfo(dmabuf, text, sizeof(text)) && line_of(text, "state:\t", state);
}

#endif
