/* Registers of up to 16 rows of 64 bytes (AMX), which multiply bytes of as many pixels with those of 16 channels; see
   operators/int8/amx.py. Where they aren't, plain C does the same. */

struct matrices {
  u8 palette, start, none[14]; unsigned short bytes[16]; u8 rows[16];
#if !defined(__AMX_INT8__)
  u8 held[8][16][64];
#endif
};

#if defined(__AMX_INT8__)
__attribute__((visibility("default"))) const int hasten_amx = 1; /* who loads this asks the system for AMX */
#define MATRIX_LOAD(m, number, from, step) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #number : : "r"(from), "r"((long)(step)) : "memory")
#define MATRIX_STORE(m, number, to, step) \
  __asm__ volatile("tilestored %%tmm" #number ", (%0,%1,1)" : : "r"(to), "r"((long)(step)) : "memory")
#define MATRIX_DOT(m, sum, x, w) __asm__ volatile("tdpbusd %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : : : "memory")
#define MATRIX_SET(m) __asm__ volatile("ldtilecfg %0" : : "m"(*(const u8(*)[64])(m)))
#define MATRIX_END() __asm__ volatile("tilerelease" : : : "memory")
#else
static void matrix_load(struct matrices *m, int number, const u8 *from, long step) {
  for (int i = 0; i < m->rows[number]; i++) __builtin_memcpy(m->held[number][i], from + i * step, m->bytes[number]);
}
static void matrix_store(struct matrices *m, int number, u8 *to, long step) {
  for (int i = 0; i < m->rows[number]; i++) __builtin_memcpy(to + i * step, m->held[number][i], m->bytes[number]);
}
static void matrix_dot(struct matrices *m, int sum, int x, int w) {
  for (int i = 0; i < m->rows[sum]; i++)
    for (int j = 0; j < m->bytes[sum] / 4; j++) {
      u32 found = ((u32 *)m->held[sum][i])[j];
      for (int k = 0; k < m->bytes[x]; k++) found += m->held[x][i][k] * (i8)m->held[w][k / 4][4 * j + k % 4];
      ((u32 *)m->held[sum][i])[j] = found;
    }
}
#define MATRIX_LOAD(m, number, from, step) matrix_load(m, number, (const u8 *)(from), step)
#define MATRIX_STORE(m, number, to, step) matrix_store(m, number, (u8 *)(to), step)
#define MATRIX_DOT(m, sum, x, w) matrix_dot(m, sum, x, w)
#define MATRIX_SET(m)
#define MATRIX_END()
#endif

/* Registers 0 to 3 are sums of `rows` pixels, 4 and 5 `bytes` bytes of as many pixels, 6 and 7 weights for them. */
static void matrices_for(struct matrices *m, long rows, long bytes) {
  m->palette = 1;
  for (int i = 0; i < 8; i++) {
    m->rows[i] = i < 6 ? rows : bytes / 4;
    m->bytes[i] = i == 4 || i == 5 ? bytes : 64;
  }
  MATRIX_SET(m);
}
