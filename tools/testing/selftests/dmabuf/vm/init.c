// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the test machine.
 *
 * Four serial ports, each with one purpose:
 *	ttyS0	console: what the kernel has to say (ttyAMA0 on arm64)
 *	ttyS1	verdict: written by this program alone
 *	ttyS2	requests to the host, see hostctl.h
 *	ttyS3	output of the programs that are run
 *
 * The verdict is "plan N", N times "test ...", one "leak ..." line per check,
 * before it "module ..." if one stays, and, last of all, "end". Whoever reads it
 * takes everything that is missing for a failure, so nothing here has to succeed
 * at reporting that it failed.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <linux/pci_regs.h>
#include <linux/types.h>

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#endif
#define __noreturn	__attribute__((__noreturn__))
#define __printf(a, b)	__attribute__((__format__(printf, a, b)))

#define MAX_TESTS	128
#define ADDRESS_SIZE	16	/* of a PCI device, 0000:00:00.0 */
#define KSFT_SKIP	4
/* lib/kunit sets it for every suite that runs, in good kernels too */
#define TAINT_TEST	(1UL << 18)
/* An object is not reported before this age, see MSECS_MIN_AGE */
#define KMEMLEAK_AGE_S	6

struct test {
	char name[64];		/* collection:program or kunit:suite */
	int timeout;		/* in seconds */
	bool may_skip;		/* the program may find nothing to test here */
};

struct counts {
	int plan, pass, fail, skip;
};

static char cmdline[4096];
static struct test tests[MAX_TESTS];
static int nr_tests;
static int nr_modules;
static bool fail_fast;
static int verdict_fd = -1;
static int out_fd = -1;

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static __noreturn void power_off(void)
{
	if (verdict_fd >= 0)
		tcdrain(verdict_fd);
	if (out_fd >= 0)
		tcdrain(out_fd);
	sync();
	reboot(RB_POWER_OFF);
	/* No way to power off: a reset ends QEMU too, by -no-reboot. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static __printf(1, 2) void verdict(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vdprintf(verdict_fd, fmt, ap);
	va_end(ap);
}

/* Without a final line: the reader of the verdict knows what that means. */
static __noreturn __printf(1, 2) void bail_out(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (verdict_fd >= 0) {
		verdict("bail ");
		vdprintf(verdict_fd, fmt, ap);
		verdict("\n");
	} else {
		vprintf(fmt, ap);
	}
	va_end(ap);
	power_off();
}

static ssize_t read_file(const char *path, char *buf, size_t size)
{
	ssize_t len = 0, n;
	int fd;

	buf[0] = '\0';
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + len, size - 1 - len)) > 0)
		len += n;
	close(fd);
	buf[len] = '\0';
	return n < 0 ? -1 : len;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* So that the console says which test a message belongs to */
static __printf(1, 2) void kmsg(const char *fmt, ...)
{
	char line[160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	write_file("/dev/kmsg", line);
}

static bool get_param(const char *name, char *value, size_t size)
{
	const char *p = cmdline;
	size_t len = strlen(name);

	while ((p = strstr(p, name))) {
		if ((p == cmdline || isspace(p[-1])) && p[len] == '=') {
			p += len + 1;
			snprintf(value, size, "%.*s", (int)strcspn(p, "\n "), p);
			return true;
		}
		p += len;
	}
	return false;
}

static int open_port(const char *path)
{
	struct termios tio;
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd >= 0 && !tcgetattr(fd, &tio)) {
		cfmakeraw(&tio);
		tio.c_cflag |= CLOCAL;
		tcsetattr(fd, TCSANOW, &tio);
	}
	return fd;
}

static void mount_all(void)
{
	static const struct {
		const char *type, *dir;
	} fs[] = {
		{ "devtmpfs", "/dev" },
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "debugfs", "/sys/kernel/debug" },
		{ "tracefs", "/sys/kernel/tracing" },
		{ "tmpfs", "/tmp" },
		{ "tmpfs", "/dev/shm" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(fs); i++) {
		mkdir(fs[i].dir, 0755);
		/* What the kernel does not have has no directory in /sys either */
		if (mount(fs[i].type, fs[i].dir, fs[i].type, 0, NULL) &&
		    errno != EBUSY && errno != ENOENT)
			bail_out("mount %s: %s", fs[i].dir, strerror(errno));
	}
}

static unsigned long read_hex(const char *dir, const char *file)
{
	char path[300], text[32];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", dir, file);
	return read_file(path, text, sizeof(text)) > 0 ?
		strtoul(text, NULL, 16) : 0;
}

/* The @nth device of a kind on the root bus, in the order of addresses */
static bool find_on_root_bus(unsigned long vendor, unsigned long device,
			     int nth, char *address)
{
	struct dirent **list;
	int n = scandir("/sys/bus/pci/devices", &list, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		if (!strncmp(list[i]->d_name, "0000:00:", 8) &&
		    read_hex(list[i]->d_name, "vendor") == vendor &&
		    read_hex(list[i]->d_name, "device") == device &&
		    !nth--) {
			snprintf(address, ADDRESS_SIZE, "%.12s",
				 list[i]->d_name);
			return true;
		}
	}
	return false;
}

/* Secondary bus of the PCIe port with this physical slot number, or -1 */
static int bus_of_slot(int slot)
{
	struct dirent **list;
	int n = scandir("/sys/bus/pci/devices", &list, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		/* Room for a capability at the very end of the first 256 */
		unsigned char conf[320] = { 0 };
		char path[300];
		__u32 slot_cap;
		int cap;

		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config",
			 list[i]->d_name);
		if (read_file(path, (char *)conf, sizeof(conf)) < PCI_CFG_SPACE_SIZE - 1 ||
		    (conf[PCI_HEADER_TYPE] & PCI_HEADER_TYPE_MASK) !=
		    PCI_HEADER_TYPE_BRIDGE)
			continue;
		for (cap = conf[PCI_CAPABILITY_LIST]; cap; cap = conf[cap + 1])
			if (conf[cap] == PCI_CAP_ID_EXP)
				break;
		memcpy(&slot_cap, &conf[cap + PCI_EXP_SLTCAP], sizeof(slot_cap));
		if (cap && (conf[cap + PCI_EXP_FLAGS + 1] & (PCI_EXP_FLAGS_SLOT >> 8)) &&
		    (slot_cap & PCI_EXP_SLTCAP_PSN) >> 19 == (__u32)slot)
			return conf[PCI_SECONDARY_BUS];
	}
	return -1;
}

static bool find_in_slot(unsigned long vendor, unsigned long device, int slot,
			 int function, char *address)
{
	int bus = bus_of_slot(slot);

	if (bus < 0)
		return false;
	snprintf(address, ADDRESS_SIZE, "0000:%02x:00.%d", bus & 0xff, function & 7);
	return read_hex(address, "vendor") == vendor &&
	       read_hex(address, "device") == device;
}

/*
 * role:vendor:device:slot.function, from topology.mk, becomes VM_<ROLE> in the
 * environment. The harness made the machine, so a missing role is no SKIP.
 */
static void find_roles(void)
{
	char roles[1024], name[64], address[ADDRESS_SIZE], *save = NULL;

	if (!get_param("vmtest.roles", roles, sizeof(roles)))
		return;
	for (char *r = strtok_r(roles, ",", &save); r;
	     r = strtok_r(NULL, ",", &save)) {
		unsigned int vendor, device;
		char role[32];
		int slot, fn;

		if (sscanf(r, "%31[^:]:%x:%x:%d.%d", role, &vendor, &device,
			   &slot, &fn) != 5)
			bail_out("vmtest.roles: %s?", r);
		if (!(slot ? find_in_slot(vendor, device, slot, fn, address) :
			     find_on_root_bus(vendor, device, fn, address)))
			bail_out("no device %04x:%04x for role %s in slot %d",
				 vendor, device, role, slot);
		snprintf(name, sizeof(name), "VM_%s", role);
		for (char *c = name; *c; c++)
			*c = toupper(*c);
		setenv(name, address, 1);
	}
}

/* Does @item, a collection or collection:program, mean this test? */
static bool matches(const char *item, size_t len, const char *test)
{
	return (len == strcspn(test, ":") || len == strlen(test)) &&
	       !strncmp(item, test, len);
}

/* @selection: items with commas between */
static bool selected(const char *selection, const char *test)
{
	for (const char *s = selection; *s; s += strspn(s, ",")) {
		size_t len = strcspn(s, ",");

		if (matches(s, len, test))
			return true;
		s += len;
	}
	return false;
}

/* A name that is misspelt must not pass for a test that ran well. */
static void check_selection(const char *selection)
{
	for (const char *s = selection; *s; s += strspn(s, ",")) {
		size_t len = strcspn(s, ",");
		int i = 0;

		while (i < nr_tests && !matches(s, len, tests[i].name))
			i++;
		if (i == nr_tests)
			bail_out("no test %.*s", (int)len, s);
		s += len;
	}
}

static void read_tests(void)
{
	char selection[512] = "", skip[8], line[256], patience[16];
	FILE *f = fopen("/tests.list", "re");

	if (!f)
		bail_out("no /tests.list");
	get_param("vmtest.run", selection, sizeof(selection));
	while (fgets(line, sizeof(line), f)) {
		struct test *t = &tests[nr_tests];
		int n;

		if (line[0] == '#' || line[0] == '\n')
			continue;
		n = sscanf(line, "%63s %d %7s", t->name, &t->timeout, skip);
		if (n < 2 || !strchr(t->name, ':') || t->timeout <= 0 ||
		    (n == 3 && strcmp(skip, "skip")))
			bail_out("tests.list: %s", line);
		t->may_skip = n == 3;
		if (get_param("vmtest.patience", patience, sizeof(patience)))
			t->timeout = atoi(patience);
		if (selected(selection, t->name) && ++nr_tests == MAX_TESTS)
			bail_out("tests.list is too long");
	}
	fclose(f);
	check_selection(selection);
}

/* Count top level TAP lines; those of subtests are indented. */
static void count_line(const char *line, struct counts *c)
{
	if (!strncmp(line, "not ok ", 7))
		c->fail++;
	else if (!strncmp(line, "ok ", 3) && strcasestr(line, "# skip"))
		c->skip++;
	else if (!strncmp(line, "ok ", 3))
		c->pass++;
	else if (!strncmp(line, "1..", 3))
		c->plan = atoi(line + 3);
}

/*
 * Copy to the output port line by line until @pid is gone; a child of it may
 * hold the pipe still. Until the first failure if that is enough to know.
 */
static void copy_output(int from, pid_t pid, double deadline, struct counts *c)
{
	struct pollfd pfd = { .fd = from, .events = POLLIN };
	char line[4096];
	size_t len = 0;

	for (;;) {
		double left = deadline - now();
		siginfo_t info = { 0 };
		char *eol;
		ssize_t n;

		if (left <= 0)
			break;
		if (!poll(&pfd, 1, left < 0.2 ? left * 1000 : 200)) {
			waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT);
			if (info.si_pid)
				break;
			continue;
		}
		n = read(from, line + len, sizeof(line) - 1 - len);
		if (n <= 0)
			break;
		len += n;
		line[len] = '\0';
		while ((eol = strchr(line, '\n')) || len == sizeof(line) - 1) {
			if (eol)
				*eol = '\0';
			else
				eol = line + len - 1;
			dprintf(out_fd, "%s\n", line);
			count_line(line, c);
			if (fail_fast && c->fail)
				return;
			len -= eol + 1 - line;
			memmove(line, eol + 1, len + 1);
		}
	}
	if (len) {
		dprintf(out_fd, "%s\n", line);
		count_line(line, c);
	}
}

/* Everything but the kernel is ours to kill. False if something won't die. */
static bool reap_all(void)
{
	double deadline = now() + 20;

	do {
		pid_t pid;

		kill(-1, SIGKILL);
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0 && errno == ECHILD)
			return true;
		usleep(50000);
	} while (now() < deadline);
	return false;
}

/* Does not return */
static void exec_with_args(const char *path)
{
	char args[128], *argv[16] = { (char *)path }, *save = NULL;
	int argc = 1;

	if (get_param("vmtest.args", args, sizeof(args)))
		argv[argc] = strtok_r(args, ",", &save);
	while (argv[argc] && argc < 15)
		argv[++argc] = strtok_r(NULL, ",", &save);
	execv(path, argv);
	dprintf(2, "# cannot run %s: %s\n", path, strerror(errno));
	_exit(127);
}

static pid_t spawn(const char *path, int *from)
{
	char dir[128], *slash;
	int fds[2], null;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		bail_out("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		bail_out("fork: %s", strerror(errno));
	if (!pid) {
		null = open("/dev/null", O_RDONLY);
		dup2(null, 0);
		dup2(fds[1], 1);
		dup2(fds[1], 2);
		close(null);
		setsid();
		snprintf(dir, sizeof(dir), "%s", path);
		slash = strrchr(dir, '/');
		slash[slash == dir] = '\0';
		if (chdir(dir))
			_exit(126);
		exec_with_args(path);
	}
	close(fds[1]);
	*from = fds[0];
	return pid;
}

/*
 * Return: the exit status, 128 + signal, or -1 after a timeout. Does not
 * return when a process survives SIGKILL: whatever holds it would make all
 * that comes later meaningless.
 */
static int run(const char *path, int timeout, struct counts *c)
{
	double deadline = now() + timeout;
	int from, status = 0;
	pid_t pid, done;

	pid = spawn(path, &from);
	copy_output(from, pid, deadline, c);
	if (fail_fast && c->fail)
		bail_out("%s failed, and that is enough", path);
	/* The test may have closed its end and go on. */
	while (!(done = waitpid(pid, &status, WNOHANG)) && now() < deadline)
		usleep(10000);
	close(from);
	if (!reap_all()) {
		write_file("/proc/sysrq-trigger", "w");
		bail_out("%s survives SIGKILL", path);
	}
	if (!done)
		return -1;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) :
				     WEXITSTATUS(status);
}

/*
 * A KUnit suite has run before this program, and its results are in a file. There
 * is none if it did not run. Return: an exit status.
 */
static int read_kunit(const char *suite, int timeout, struct counts *c)
{
	char path[128];
	int from;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kunit/%s/results", suite);
	from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0) {
		dprintf(out_fd, "# no %s\n", path);
		return 127;
	}
	copy_output(from, getpid(), now() + timeout, c);
	close(from);
	return 0;
}

/*
 * Number of dma-bufs that are alive, -1 if it cannot be known. Those of a
 * process that has just gone may take a moment.
 */
static int leaked_dmabufs(void)
{
	static char text[65536];
	int objects = -1;

	for (int i = 0; i < 20; i++) {
		char *total;

		objects = -1;
		if (read_file("/sys/kernel/debug/dma_buf/bufinfo", text,
			      sizeof(text)) < 0)
			return -1;
		/* Look from the end: names of buffers are up to user space. */
		for (char *p = text; (total = strstr(p, "\nTotal ")); p = total + 1)
			if (sscanf(total, "\nTotal %d objects", &objects) != 1)
				objects = -1;
		if (!objects)
			return 0;
		usleep(100000);
	}
	dprintf(out_fd, "%s\n", text);
	return objects;
}

static unsigned long new_taint(unsigned long before)
{
	char text[32];

	if (read_file("/proc/sys/kernel/tainted", text, sizeof(text)) <= 0)
		bail_out("cannot read the taint of the kernel");
	return strtoul(text, NULL, 10) & ~before & ~TAINT_TEST;
}

#define KMEMLEAK "/sys/kernel/debug/kmemleak"

/* Number of suspects, -1 if kmemleak should work and does not */
static int leaked_memory(bool want)
{
	static char text[65536];
	int leaks = 0;

	if (access(KMEMLEAK, F_OK))
		return want ? -1 : 0;
	/* The first scan finds, the second has seen them all grow old. */
	for (int i = 0; i < 2; i++) {
		if (write_file(KMEMLEAK, "scan"))
			return -1;
		sleep(KMEMLEAK_AGE_S);
	}
	if (write_file(KMEMLEAK, "scan") ||
	    read_file(KMEMLEAK, text, sizeof(text)) < 0)
		return -1;
	for (char *p = text; (p = strstr(p, "unreferenced object")); p++)
		leaks++;
	dprintf(out_fd, "%s", text);
	return leaks;
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static bool load_module(const char *file)
{
	char path[300];
	int fd, ret;

	snprintf(path, sizeof(path), "/lib/modules/%s", file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ret = syscall(SYS_finit_module, fd, "", 0);
	close(fd);
	return !ret || errno == EEXIST;
}

/*
 * One that needs another which comes later has to wait for the next round. False if
 * there is one that does not load. What is built in is no module.
 */
static bool load_modules(void)
{
	struct dirent **list;
	int n, before;

	n = scandir("/lib/modules", &list, is_visible, alphasort);
	nr_modules = 0;
	do {
		before = nr_modules;
		nr_modules = 0;
		for (int i = 0; i < n; i++)
			nr_modules += load_module(list[i]->d_name);
	} while (nr_modules > before);
	return n < 0 || nr_modules == n;
}

/* No other needs the latest, which is in the first line. Who holds it may be about to go. */
static bool unload_latest_module(void)
{
	char name[56];
	int refs = 0;

	for (int i = 0; i < 20; i++) {
		FILE *f = fopen("/proc/modules", "re");

		if (!f || fscanf(f, "%55s %*u %d", name, &refs) != 2)
			bail_out("no module in /proc/modules");
		fclose(f);
		if (!syscall(SYS_delete_module, name, O_NONBLOCK))
			return true;
		usleep(100000);
	}
	verdict("module %s is used by %d\n", name, refs);
	return false;
}

static bool unload_modules(int nr)
{
	while (nr--)
		if (!unload_latest_module())
			return false;
	return true;
}

/*
 * The latest goes and comes back, then it and the one before it, and so on: what they
 * leave behind in those that stay is in the way then. In the end all of them are gone.
 */
static bool modules_go(void)
{
	for (int nr = 1; nr <= nr_modules; nr++)
		if (!unload_modules(nr) || !load_modules())
			return false;
	return unload_modules(nr_modules);
}

static bool run_test(const struct test *t, unsigned long taint)
{
	struct counts c = { 0 };
	const char *why = NULL;
	char path[sizeof(t->name) + 8], text[64];
	double start = now();
	int status, left;

	snprintf(path, sizeof(path), "/tests/%.63s", t->name);
	*strchr(path, ':') = '/';
	kmsg("vmtest: %s", t->name);
	dprintf(out_fd, "# vmtest: %s\n", t->name);

	if (!strncmp(t->name, "kunit:", 6))
		status = read_kunit(t->name + 6, t->timeout, &c);
	else
		status = run(path, t->timeout, &c);
	left = leaked_dmabufs();
	snprintf(text, sizeof(text), status > 128 ? "signal %d" :
		 "exit status %d", status > 128 ? status - 128 : status);
	if (status == -1)
		why = "timeout";
	else if (status == KSFT_SKIP || (!status && c.skip && !c.pass && !c.fail))
		why = t->may_skip ? NULL : "skipped as a whole";
	else if (status)
		why = text;
	else if (c.fail)
		why = "not ok, but exit status 0";
	else if (c.plan != c.pass + c.skip)
		why = "results differ from the plan";
	else if (!c.pass)
		why = "no result";
	if (!why && left)
		why = "dma-bufs left";
	if (!why && new_taint(taint))
		why = "kernel is tainted";
	verdict("test %s %s pass %d fail %d skip %d of %d in %.1f s%s%s\n",
		t->name, why ? "FAIL" : c.pass ? "PASS" : "SKIP", c.pass,
		c.fail, c.skip, c.plan, now() - start, why ? ": " : "",
		why ?: "");
	return !why;
}

static void run_tests(void)
{
	struct counts unused = { 0 };
	unsigned long taint = 0;
	char debug[8] = "";
	int good = 0;
	bool want;

	fail_fast = get_param("vmtest.failfast", debug, sizeof(debug)) &&
		    !strcmp(debug, "yes");
	read_tests();
	if (!nr_tests)
		bail_out("no test is selected");
	verdict("plan %d\n", nr_tests);

	get_param("vmtest.debug", debug, sizeof(debug));
	want = !strcmp(debug, "yes");
	taint = new_taint(0);
	if (want && (write_file(KMEMLEAK, "scan") ||
		     write_file(KMEMLEAK, "clear")))
		bail_out("kmemleak does not work");

	for (int i = 0; i < nr_tests; i++)
		good += run_test(&tests[i], taint);

	verdict("leak dmabufs %d\n", leaked_dmabufs());
	verdict("leak modules %d\n", !modules_go());
	verdict("leak kmemleak %d\n", leaked_memory(want));
	verdict("leak taint %lu\n", new_taint(taint));
	/* With CHECK=gcov: what has been executed */
	if (!access("/coverage", X_OK))
		run("/coverage", 60, &unused);
	verdict("end %d of %d good\n", good, nr_tests);
}

/* The demo has traced something that is worth a picture. */
static void copy_timeline(void)
{
	FILE *f = fopen("/tmp/timeline.trace", "re");
	char line[1024];

	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		verdict("%s", line);
	fclose(f);
}

static void run_shell(void)
{
	pid_t pid;

	printf("Roles: env | grep VM_   tests: /tests   leave: exit\n");
	fflush(stdout);
	pid = fork();
	if (!pid) {
		setsid();
		ioctl(0, TIOCSCTTY, 1);
		setenv("PS1", "vm# ", 1);
		execl("/bin/sh", "sh", NULL);
		perror("/bin/sh");
		_exit(127);
	}
	while (waitpid(-1, NULL, 0) != pid)
		;
}

int main(void)
{
	char mode[16] = "test", text[16];
	struct counts unused = { 0 };
	int timeout = 600;

	umask(0);
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/tmp", 1);
	/* Says to a test that what it misses here is a failure, and no SKIP */
	setenv("VMTEST", "1", 1);
	mount_all();
	umask(022);
	if (read_file("/proc/cmdline", cmdline, sizeof(cmdline)) <= 0)
		bail_out("no kernel command line");
	verdict_fd = open_port("/dev/ttyS1");
	out_fd = open_port("/dev/ttyS3");
	if (verdict_fd < 0 || out_fd < 0)
		bail_out("no serial port for the verdict");
	if (get_param("vmtest.host", text, sizeof(text)) && !strcmp(text, "yes"))
		setenv("VM_HOST", "/dev/ttyS2", 1);
	write_file("/proc/sys/vm/nr_hugepages", "80");
	if (!load_modules())
		bail_out("modules do not load");
	find_roles();

	get_param("vmtest.mode", mode, sizeof(mode));
	if (get_param("vmtest.timeout", text, sizeof(text)))
		timeout = atoi(text);
	if (!strcmp(mode, "demo")) {
		verdict("exit %d\n", run("/demo", timeout, &unused));
		copy_timeline();
	} else if (!strcmp(mode, "bench")) {
		verdict("exit %d\n", run("/bench", timeout, &unused));
	} else if (!strcmp(mode, "shell")) {
		run_shell();
	} else {
		run_tests();
	}
	power_off();
}
