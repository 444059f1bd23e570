/* The wall clock of a process, with the offset that a file says; every other clock stays as it is.

   Preloaded into a program, it adds the offset to what libc says the time is, and takes it from the times until which
   libc and the kernel are asked to wait by that clock. It has no lock, so a killed process leaves nothing behind: the
   offset is one aligned number of 64 bits in a page that processes share. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SHOWN __attribute__((visibility("default")))
#define SECOND 1000000000LL
/* Nobody tells a waiting thread of a jump, so that it looks itself. */
#define LOOK (SECOND / 20)
/* Seconds that no machine has been up for, and that the wall clock passed in 2001. */
#define WALL 1000000000LL

static const int64_t none;
static const volatile int64_t *offset = &none;

#define REAL(name)                                                \
  static __typeof__(&name) real;                                  \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CHAOS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (page != MAP_FAILED) offset = page;
}

static struct timespec moved(struct timespec at, int64_t by) {
  int64_t nanoseconds = at.tv_nsec + by % SECOND;
  at.tv_sec += by / SECOND + (nanoseconds >= SECOND) - (nanoseconds < 0);
  at.tv_nsec = (nanoseconds + SECOND) % SECOND;
  return at;
}

static int is_wall(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

static int asked(clockid_t clock, struct timespec *at) {
  REAL(clock_gettime);
  return real(clock, at);
}

SHOWN int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = asked(clock, at);
  if (!failed && is_wall(clock)) *at = moved(*at, *offset);
  return failed;
}

SHOWN int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  REAL(gettimeofday);
  int failed = real(at, zone);
  if (!failed && at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    *at = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
  }
  return failed;
}

SHOWN time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}

SHOWN int timespec_get(struct timespec *at, int base) {
  if (base != TIME_UTC) return 0;
  clock_gettime(CLOCK_REALTIME, at);
  return base;
}

static int is_before(struct timespec one, struct timespec other) {
  return one.tv_sec < other.tv_sec || (one.tv_sec == other.tv_sec && one.tv_nsec < other.tv_nsec);
}

static int is_over(const struct timespec *until) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return !is_before(now, *until);
}

/* Return the time by the kernel's wall clock until which to wait before looking again. */
static struct timespec soon(const struct timespec *until) {
  struct timespec look, end = moved(*until, -*offset);
  asked(CLOCK_REALTIME, &look);
  look = moved(look, LOOK);
  return is_before(end, look) ? end : look;
}

/* It ends early as if woken for no reason, which every caller has to expect: one that waited on would miss a signal
   that came in between. */
SHOWN int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                                 const struct timespec *restrict until) {
  REAL(pthread_cond_timedwait);
  if (until->tv_sec < WALL) return real(cond, mutex, until); /* by the monotonic clock */
  struct timespec end = soon(until);
  int failed = real(cond, mutex, &end);
  return failed == ETIMEDOUT && !is_over(until) ? 0 : failed;
}

SHOWN int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
  REAL(pthread_mutex_timedlock);
  for (;;) {
    struct timespec end = soon(until);
    int failed = real(mutex, &end);
    if (failed != ETIMEDOUT || is_over(until)) return failed;
  }
}

SHOWN int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  REAL(sem_timedwait);
  for (;;) {
    struct timespec end = soon(until);
    int failed = real(semaphore, &end);
    if (!failed || errno != ETIMEDOUT || is_over(until)) return failed;
  }
}

static int waits_by_wall(long number, long operation, const void *until) {
  return number == SYS_futex && until && operation & FUTEX_CLOCK_REALTIME &&
         (operation & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
}

/* gRPC's library and the standard library of C++ ask the kernel by this. */
SHOWN long syscall(long number, ...) {
  REAL(syscall);
  long a[6];
  va_list given;
  va_start(given, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(given, long);
  va_end(given);
  if (number == SYS_clock_gettime) return clock_gettime(a[0], (struct timespec *)a[1]);
  if (!waits_by_wall(number, a[1], (void *)a[3])) return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  const struct timespec *until = (struct timespec *)a[3];
  for (;;) {
    struct timespec end = soon(until);
    long failed = real(number, a[0], a[1], a[2], &end, a[4], a[5]);
    if (!failed || errno != ETIMEDOUT || is_over(until)) return failed;
  }
}
