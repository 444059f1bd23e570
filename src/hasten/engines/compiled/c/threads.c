/* Threads that answer one request together. Included before the operations of a plan of which some are
   shared. The caller and the workers all go through the whole plan by `walk`. It is a row of stages, each
   cut into shares: a thread claims a share, its own ones first, and a stage begins once every share of the
   one before is done. So nobody waits for a thread that the system doesn't run now, unless that is within
   a share. Nothing here knows Python; nothing waits for Python's lock. */

#if defined(__x86_64__)
enum { FUTEX = 202 };
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
enum { FUTEX = 98 };
#define PAUSE() __asm__ volatile("yield")
#else
enum { FUTEX = 0 }; /* no number of the call that sleeps, so no team */
#define PAUSE()
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
enum { MOST_THREADS = 32, SPINS = 500, YIELDS = 4 };
#define LINE __attribute__((aligned(64)))
typedef unsigned u32;
typedef unsigned long u64;

/* stage: number of the stage that goes on, in the upper half; in the lower one a bit for each share of it
   that was claimed. done: shares of it that are done. begun: calls so far, times 2, plus 1 while the
   next one is written down. owner: process that the workers belong to, times 2, plus 1 while a call has the team.
   wanted: threads with the caller, fewer once the system denied one. */
struct team {
  LINE u64 stage;
  LINE u32 done;
  LINE u32 asleep_in_call;
  LINE u32 begun;
  LINE u32 asleep;
  LINE struct call call;
  u32 first, threads, rounding;
  int stop;
  LINE long owner;
  long wanted, workers;
  struct seat { struct team *team; unsigned long thread; long part; u32 seen; } seats[MOST_THREADS];
};

/* A thread in a call. team: 0 for a caller without any. part: its number. stage: number of the stage that
   it comes to next. shares: shares of that, `each` of them its own first. left: without a team, shares to do. */
struct member { struct team *team; long part; u32 threads, stage, shares, each; int left; };

static void walk(const struct call *c, struct member *me);

/* Wait until a number changes: spin for some microseconds, leave the processor to others a few times, then
   sleep. */
static __attribute__((noinline)) void await(u32 *number, u32 old, u32 *asleep) {
  for (int i = 0; i < SPINS; i++) {
    if (__atomic_load_n(number, __ATOMIC_ACQUIRE) != old) return;
    PAUSE();
  }
  for (int i = 0; i < YIELDS; i++) {
    sched_yield();
    if (__atomic_load_n(number, __ATOMIC_ACQUIRE) != old) return;
  }
  __atomic_add_fetch(asleep, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(number, __ATOMIC_SEQ_CST) == old) syscall(FUTEX, number, WAIT, old, 0);
  __atomic_sub_fetch(asleep, 1, __ATOMIC_SEQ_CST);
}

static inline void wake(u32 *number, u32 *asleep) {
  if (__atomic_load_n(asleep, __ATOMIC_SEQ_CST)) syscall(FUTEX, number, WAKE, EVERYBODY);
}

/* Half of `stage` that threads wait for: both processors store the lower half first. */
static inline u32 *upper(struct team *team) { return (u32 *)&team->stage + 1; }

/* Wait until a stage's turn has come; it may be over. */
static inline void arrive(struct team *team, u32 stage) {
  for (;;) {
    const u32 now = __atomic_load_n(&team->stage, __ATOMIC_ACQUIRE) >> 32;
    if ((i32)(now - stage) >= 0) return;
    await(upper(team), now, &team->asleep_in_call);
  }
}

/* Begin a stage of some steps. */
static inline void enter(struct member *me, long steps) {
  me->left = me->shares = 1;
  if (!me->team) return;
  const u32 many = me->threads * 2 <= 32 ? me->threads * 2 : me->threads;
  me->shares = steps >= many ? many : steps >= me->threads ? me->threads : steps > 1 ? steps : 1;
  me->each = me->shares == many ? many / me->threads : 1;
  arrive(me->team, me->stage);
}

/* Return a share of the stage to work on; -1 once none is left, which ends the stage for this thread. */
static inline long claim(struct member *me) {
  struct team *team = me->team;
  if (!team) return me->left ? --me->left : -1;
  const u32 all = me->shares < 32 ? (1u << me->shares) - 1 : ~0u;
  u64 now = __atomic_load_n(&team->stage, __ATOMIC_ACQUIRE);
  while ((u32)(now >> 32) == me->stage && ((u32)now & all) != all) {
    const u32 open = all & ~(u32)now, own = open & (((1u << me->each) - 1) << me->part * me->each);
    const int share = own ? __builtin_ctz(own) : 31 - __builtin_clz(open);
    const u64 then = now | 1u << share;
    if (__atomic_compare_exchange_n(&team->stage, &now, then, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) return share;
  }
  me->stage++;
  return -1;
}

/* End the share that was claimed; the last one opens the next stage. */
static inline void finish(struct member *me) {
  struct team *team = me->team;
  if (!team || __atomic_add_fetch(&team->done, 1, __ATOMIC_ACQ_REL) != me->shares) return;
  __atomic_store_n(&team->done, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&team->stage, (u64)(u32)(me->stage + 1) << 32, __ATOMIC_SEQ_CST);
  wake(upper(team), &team->asleep_in_call);
}

/* Whether this thread is the one, the caller, for a stage that isn't shared; then `finish` ends it. */
static inline int alone(struct member *me) {
  if (!me->team) return 1;
  if (me->part) { me->stage++; return 0; }
  arrive(me->team, me->stage);
  me->shares = 1;
  return 1;
}

static inline void finish_alone(struct member *me) {
  finish(me);
  me->stage++;
}

static void *work(void *own) {
  struct seat *seat = own;
  struct team *team = seat->team;
  for (;;) {
    await(&team->begun, seat->seen, &team->asleep);
    const u32 begun = __atomic_load_n(&team->begun, __ATOMIC_ACQUIRE);
    if (begun % 2) { await(&team->begun, begun, &team->asleep); continue; }
    if (team->stop) return 0;
    struct call call = team->call;
    struct member me = {team, seat->part, team->threads, team->first};
    const u32 rounding = team->rounding;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&team->begun, __ATOMIC_RELAXED) != begun) continue;
    seat->seen = begun;
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(rounding);
#endif
    walk(&call, &me);
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
    team->workers = team->stop = 0;
    team->done = team->asleep = team->asleep_in_call = team->begun = 0;
    team->stage = 0;
  }
  return 1;
}

static void give_back(struct team *team) {
  __atomic_store_n(&team->owner, team->owner - 1, __ATOMIC_RELEASE);
}

/* Start the workers that are missing, with every signal left to the threads of the program. */
static void fill(struct team *team) {
  unsigned long all[16], before[16];
  __builtin_memset(all, 255, sizeof all);
  if (pthread_sigmask(SET_MASK, all, before)) return;
  while (team->workers + 1 < team->wanted) {
    struct seat *seat = &team->seats[team->workers];
    *seat = (struct seat){team, 0, team->workers + 1, team->begun};
    if (pthread_create(&seat->thread, 0, work, seat)) { team->wanted = team->workers + 1; break; }
    team->workers++;
  }
  pthread_sigmask(SET_MASK, before, 0);
}

/* Write a call down for the workers, and wake them. */
static void begin(struct team *team, const struct call *c) {
  __atomic_store_n(&team->begun, team->begun + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  team->call = *c;
  team->first = team->stage >> 32;
  team->threads = team->workers + 1;
#if defined(__x86_64__)
  team->rounding = __builtin_ia32_stmxcsr();
#endif
  __atomic_store_n(&team->begun, team->begun + 1, __ATOMIC_SEQ_CST);
  wake(&team->begun, &team->asleep);
}

/* Answer a call, with the team unless another call has it. */
static void run(const struct call *c) {
  struct team *team = c->team;
  struct member me = {0};
  if (!team || !take(team)) { walk(c, &me); return; }
  if (team->workers + 1 < team->wanted) fill(team);
  if (team->workers) {
    begin(team, c);
    me = (struct member){team, 0, team->threads, team->first};
  }
  walk(c, &me);
  if (team->workers) arrive(team, me.stage);
  give_back(team);
}

/* Return a team of some threads, none of which runs before the first call; 0 where there can't be one. */
__attribute__((visibility("default"))) struct team *hasten_team(long threads) {
  struct team *team = FUTEX ? aligned_alloc(64, sizeof(struct team)) : 0;
  if (!team) return 0;
  __builtin_memset(team, 0, sizeof *team);
  team->wanted = threads < MOST_THREADS ? threads : MOST_THREADS;
  return team;
}

/* End the workers, unless a call has the team now; a later call starts them again. */
__attribute__((visibility("default"))) void hasten_dismiss(struct team *team) {
  if (!team || !take(team)) return;
  team->stop = 1;
  __atomic_store_n(&team->begun, team->begun + 2, __ATOMIC_SEQ_CST);
  wake(&team->begun, &team->asleep);
  while (team->workers) pthread_join(team->seats[--team->workers].thread, 0);
  team->stop = 0;
  give_back(team);
}

/* End the workers and free the team, which no call has nor will have. */
__attribute__((visibility("default"))) void hasten_disband(struct team *team) {
  hasten_dismiss(team);
  free(team);
}
