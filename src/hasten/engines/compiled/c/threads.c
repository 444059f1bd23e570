/* Threads that answer one request together. Included before the operations of a plan of which some are
   shared. The caller is part 0, workers are the others: each goes through the whole plan by `walk`, and
   all meet between two operations. Nothing here knows Python; nothing waits for Python's lock. */

#if defined(__x86_64__)
enum { FUTEX = 202 };
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
enum { FUTEX = 98 };
#define PAUSE() __asm__ volatile("yield")
#else
#error "several threads are for x86-64 and ARM64 alone"
#endif

extern int pthread_create(unsigned long *, const void *, void *(*)(void *), void *);
extern int pthread_join(unsigned long, void **);
extern int pthread_sigmask(int, const void *, void *);
extern int sched_yield(void);
extern int getpid(void);
extern long syscall(long, ...);
extern void *aligned_alloc(unsigned long, unsigned long);
extern void free(void *);

enum { WAIT = 128, WAKE = 129, EVERYBODY = 0x7fffffff, SET_MASK = 2 };
enum { MOST_THREADS = 256, SPINS = 500, YIELDS = 4 };
#define LINE __attribute__((aligned(64)))

/* A number that threads wait for to change, and how many of them sleep meanwhile. */
struct gate { LINE int number; LINE int asleep; };

struct seat { struct team *team; unsigned long thread; long part; int seen; };

/* owner: the process that the workers belong to, times 2, plus 1 while a call has the team.
   wanted: threads with the caller; fewer once the system denied one. */
struct team {
  LINE long owner;
  LINE const struct call *call;
  long wanted, workers;
  int stop;
  unsigned rounding;
  struct gate begun, passed;
  LINE int arrived;
  LINE struct seat seats[MOST_THREADS];
};

static void walk(const struct call *c, long part, long parts);

/* Spin for some microseconds, leave the processor to others a few times, then sleep. */
static __attribute__((noinline)) void await(struct gate *gate, int old) {
  for (int i = 0; i < SPINS; i++) {
    if (__atomic_load_n(&gate->number, __ATOMIC_ACQUIRE) != old) return;
    PAUSE();
  }
  for (int i = 0; i < YIELDS; i++) {
    sched_yield();
    if (__atomic_load_n(&gate->number, __ATOMIC_ACQUIRE) != old) return;
  }
  __atomic_add_fetch(&gate->asleep, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&gate->number, __ATOMIC_SEQ_CST) == old) syscall(FUTEX, &gate->number, WAIT, old, 0);
  __atomic_sub_fetch(&gate->asleep, 1, __ATOMIC_SEQ_CST);
}

static void advance(struct gate *gate, int number) {
  __atomic_store_n(&gate->number, number, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&gate->asleep, __ATOMIC_SEQ_CST)) syscall(FUTEX, &gate->number, WAKE, EVERYBODY);
}

/* Go on once all parts are here. */
static inline void meet(struct team *team, long parts) {
  if (parts == 1) return;
  const int passed = __atomic_load_n(&team->passed.number, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == parts) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    advance(&team->passed, (int)(passed + 1u));
  } else {
    await(&team->passed, passed);
  }
}

static void *work(void *own) {
  struct seat *seat = own;
  struct team *team = seat->team;
  for (;;) {
    await(&team->begun, seat->seen);
    seat->seen = (int)(seat->seen + 1u);
    if (team->stop) return 0;
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(team->rounding);
#endif
    walk(team->call, seat->part, team->workers + 1);
  }
}

/* Take the team for a call; 0 while another one has it. A process that was forked has none of the
   workers, and whoever had the team is gone. */
static int take(struct team *team) {
  const long process = getpid();
  long owner = __atomic_load_n(&team->owner, __ATOMIC_RELAXED);
  if (owner == process * 2 + 1) return 0;
  if (!__atomic_compare_exchange_n(&team->owner, &owner, process * 2 + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
    return 0;
  if (owner / 2 != process) {
    team->workers = team->arrived = team->stop = 0;
    team->begun = team->passed = (struct gate){0};
  }
  return 1;
}

static void give_back(struct team *team) {
  __atomic_store_n(&team->owner, (team->owner / 2) * 2, __ATOMIC_RELEASE);
}

/* Start the workers that are missing, with every signal left to the threads of the program. */
static void fill(struct team *team) {
  unsigned long all[16], before[16];
  __builtin_memset(all, 255, sizeof all);
  if (pthread_sigmask(SET_MASK, all, before)) return;
  while (team->workers + 1 < team->wanted) {
    struct seat *seat = &team->seats[team->workers];
    *seat = (struct seat){team, 0, team->workers + 1, team->begun.number};
    if (pthread_create(&seat->thread, 0, work, seat)) { team->wanted = team->workers + 1; break; }
    team->workers++;
  }
  pthread_sigmask(SET_MASK, before, 0);
}

/* Answer a call, with the team unless another call has it. */
static void run(const struct call *c) {
  struct team *team = c->team;
  if (!team || !take(team)) { walk(c, 0, 1); return; }
  if (team->workers + 1 < team->wanted) fill(team);
  if (team->workers) {
    team->call = c;
#if defined(__x86_64__)
    team->rounding = __builtin_ia32_stmxcsr();
#endif
    advance(&team->begun, (int)(team->begun.number + 1u));
  }
  walk(c, 0, team->workers + 1);
  give_back(team);
}

/* Return a team of some threads, none of which runs before the first call; 0 without memory. */
__attribute__((visibility("default"))) struct team *hasten_team(long threads) {
  struct team *team = aligned_alloc(64, sizeof(struct team));
  if (!team) return 0;
  __builtin_memset(team, 0, sizeof *team);
  team->wanted = threads < MOST_THREADS ? threads : MOST_THREADS;
  return team;
}

/* End the workers, unless a call has the team now; a later call starts them again. */
__attribute__((visibility("default"))) void hasten_dismiss(struct team *team) {
  if (!team || !take(team)) return;
  team->stop = 1;
  advance(&team->begun, (int)(team->begun.number + 1u));
  while (team->workers) pthread_join(team->seats[--team->workers].thread, 0);
  team->stop = 0;
  give_back(team);
}

/* End the workers and free the team, which no call has nor will have. */
__attribute__((visibility("default"))) void hasten_disband(struct team *team) {
  hasten_dismiss(team);
  free(team);
}
