/* Coders of packed bundles: see huffman.py, rans.py, sparse.py and planes.py for the formats.

   It includes nothing and allocates nothing. Each decoder checks its tables before it decodes, reads only within
   its input and writes only within its output, whatever the input holds. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { u64 v; } __attribute__((packed, may_alias)) loose64;
typedef struct { u32 v; } __attribute__((packed, may_alias)) loose32;
typedef struct { u16 v; } __attribute__((packed, may_alias)) loose16;

#define PUBLIC __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "numbers are read as little-endian ones"
#endif

/* What a decoder returns: the place of a message in native.py. */
enum { FINE, SHORT, TABLE, STREAMS, ENDED, LEFT, STATE, RANGE };

INLINE u64 read64(const u8 *at) { return ((const loose64 *)at)->v; }
INLINE u32 read32(const u8 *at) { return ((const loose32 *)at)->v; }
INLINE u32 read16(const u8 *at) { return ((const loose16 *)at)->v; }
INLINE void write32(u8 *at, u32 v) { ((loose32 *)at)->v = v; }
INLINE void write16(u8 *at, u32 v) { ((loose16 *)at)->v = (u16)v; }

/* How often each byte occurs. */
PUBLIC void hasten_counts(const u8 *in, long n, u32 *counts) {
  u32 part[4][256];
  long i = 0;
  for (int k = 0; k < 4; k++)
    for (int s = 0; s < 256; s++) part[k][s] = 0;
  for (; i + 4 <= n; i += 4) {
    u32 four = read32(in + i);
    part[0][four & 255]++;
    part[1][four >> 8 & 255]++;
    part[2][four >> 16 & 255]++;
    part[3][four >> 24]++;
  }
  for (; i < n; i++) part[0][in[i]]++;
  for (int s = 0; s < 256; s++) counts[s] = part[0][s] + part[1][s] + part[2][s] + part[3][s];
}

/* ---- Huffman: codes of at most LONGEST bits, four streams ---- */

#define LONGEST 11
#define CODES (1 << LONGEST)
#define LENGTHS 12 /* bytes of three streams' lengths */

/* The first code of each length, and whether the lengths are those of a full tree. */
static int first_codes(const u8 *lengths, u32 *next) {
  u32 of[LONGEST + 1] = {0}, sum = 0, code = 0;
  for (int s = 0; s < 256; s++) {
    if (lengths[s] > LONGEST) return 0;
    of[lengths[s]]++;
  }
  of[0] = 0;
  for (int bits = 1; bits <= LONGEST; bits++) {
    sum += of[bits] << (LONGEST - bits);
    code = (code + of[bits - 1]) << 1;
    next[bits] = code;
  }
  return sum == CODES;
}

INLINE u32 turned(u32 code, u32 bits) {
  u32 back = 0;
  for (u32 k = 0; k < bits; k++) back |= (code >> k & 1) << (bits - 1 - k);
  return back;
}

INLINE long quarter(long n, int k) {
  long each = (n + 3) / 4;
  return k * each < n ? k * each : n;
}

/* Decode `in` to exactly n bytes, n at least 1. */
PUBLIC long hasten_huffman_decode(const u8 *in, long size, u8 *out, long n) {
  u8 lengths[256];
  u16 table[CODES];
  u32 next[LONGEST + 1];
  if (size < 2) return SHORT;
  u32 first = in[0], span = in[1] + 1u;
  long head = 2 + (span + 1) / 2 + LENGTHS;
  if (size < head) return SHORT;
  for (int s = 0; s < 256; s++) lengths[s] = 0;
  for (u32 k = 0; k < span; k++) lengths[(first + k) & 255] = in[2 + k / 2] >> (k % 2 * 4) & 15;
  if (span % 2 && in[2 + span / 2] >> 4) return TABLE;
  if (!first_codes(lengths, next)) return TABLE;
  for (u32 s = 0; s < 256; s++) {
    u32 bits = lengths[s];
    if (!bits) continue;
    for (u32 at = turned(next[bits]++, bits); at < CODES; at += 1u << bits) table[at] = (u16)(s << 8 | bits);
  }

  const u8 *p[4], *end[4];
  u8 *o[4], *last[4];
  u64 rest = (u64)(size - head);
  p[0] = in + head;
  for (int k = 0; k < 4; k++) {
    u64 length = k < 3 ? read32(in + head - LENGTHS + 4 * k) : rest;
    if (length > rest) return STREAMS;
    rest -= length;
    end[k] = p[k] + length;
    if (k < 3) p[k + 1] = end[k];
    o[k] = out + quarter(n, k);
    last[k] = out + quarter(n, k + 1);
  }

  u64 b[4] = {0, 0, 0, 0};
  u32 have[4] = {0, 0, 0, 0};
  {
    u64 b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    u32 h0 = 0, h1 = 0, h2 = 0, h3 = 0;
    const u8 *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3];
    u8 *o0 = o[0], *o1 = o[1], *o2 = o[2], *o3 = o[3];
#define FILL(k) h##k &= 63, b##k |= read64(p##k) << h##k, p##k += (63 - h##k) >> 3, h##k |= 56
#define ONE(k, j)                    \
  {                                  \
    u32 e = table[b##k & (CODES - 1)]; \
    b##k >>= e & 63;                 \
    h##k -= e;                       \
    o##k[j] = (u8)(e >> 8);                           \
  }
#define EACH(j) ONE(0, j) ONE(1, j) ONE(2, j) ONE(3, j)
    /* Five codes take at most 55 bits. The last quarter is the shortest. */
    while (last[3] - o3 >= 5 && end[0] - p0 >= 8 && end[1] - p1 >= 8 && end[2] - p2 >= 8 && end[3] - p3 >= 8) {
      FILL(0), FILL(1), FILL(2), FILL(3);
      EACH(0) EACH(1) EACH(2) EACH(3) EACH(4)
      o0 += 5, o1 += 5, o2 += 5, o3 += 5;
    }
    p[0] = p0, p[1] = p1, p[2] = p2, p[3] = p3;
    o[0] = o0, o[1] = o1, o[2] = o2, o[3] = o3;
    b[0] = b0, b[1] = b1, b[2] = b2, b[3] = b3;
    have[0] = h0 & 63, have[1] = h1 & 63, have[2] = h2 & 63, have[3] = h3 & 63;
  }
  for (int k = 0; k < 4; k++) {
    /* What lies above the bits that count is what the next bytes hold, so they are put there once more. */
    while (o[k] < last[k]) {
      for (; have[k] <= 56 && p[k] < end[k]; have[k] += 8) b[k] |= (u64)*p[k]++ << have[k];
      u32 e = table[b[k] & (CODES - 1)], bits = e & 63;
      if (bits > have[k]) return ENDED;
      *o[k]++ = (u8)(e >> 8);
      b[k] >>= bits;
      have[k] -= bits;
    }
    if ((u64)(end[k] - p[k]) * 8 + have[k] >= 8) return LEFT;
    if (b[k]) return LEFT;
  }
  return FINE;
}

/* Code n bytes by codes of these lengths, which are a full tree's; return the size, or -1 past the room. */
PUBLIC long hasten_huffman_encode(const u8 *in, long n, const u8 *lengths, u32 first, u32 span, u8 *out, long room) {
  u32 next[LONGEST + 1], code[256];
  long head = 2 + (span + 1) / 2 + LENGTHS;
  if (room < head || !first_codes(lengths, next)) return -1;
  for (int s = 0; s < 256; s++) code[s] = lengths[s] ? turned(next[lengths[s]]++, lengths[s]) : 0;
  out[0] = (u8)first;
  out[1] = (u8)(span - 1);
  for (u32 k = 0; k < (span + 1) / 2; k++) out[2 + k] = 0;
  for (u32 k = 0; k < span; k++) out[2 + k / 2] |= (u8)(lengths[(first + k) & 255] << (k % 2 * 4));
  u8 *at = out + head, *end = out + room;
  for (int k = 0; k < 4; k++) {
    u8 *from = at;
    u64 b = 0;
    u32 have = 0;
    for (long i = quarter(n, k); i < quarter(n, k + 1); i++) {
      b |= (u64)code[in[i]] << have;
      have += lengths[in[i]];
      for (; have >= 8; have -= 8, b >>= 8) {
        if (at == end) return -1;
        *at++ = (u8)b;
      }
    }
    if (have) {
      if (at == end) return -1;
      *at++ = (u8)b;
    }
    if (k < 3) write32(out + head - LENGTHS + 4 * k, (u32)(at - from));
  }
  return at - out;
}

/* ---- rANS: states of 32 bits that take 16 at a time, frequencies out of 2^8 to 2^15 ---- */

#define LOW 65536u /* the least state */

/* Bytes of tables that decoding needs, for any input. */
PUBLIC long hasten_rans_room(void) { return 5l << 15; }

/* One step of a state: look up its byte, and take a word where it becomes small. */
#define STEP(x, place)                               \
  {                                                  \
    u32 slot = x & mask, both = slots[slot];         \
    u32 y = (both >> 16) * (x >> p) + (both & 65535); \
    u32 few = -(u32)(y < LOW); /* no branch: it couldn't be foreseen */ \
    out[place] = symbols[slot];                      \
    x = y << (few & 16) | (read16(in) & few);        \
    in += few & 2;                                   \
  }

static int rans_some(const u8 **at, const u8 *end, u32 *x, u32 lanes, u32 p, const u32 *slots, const u8 *symbols,
                     u8 *out, long n) {
  const u8 *in = *at;
  u32 mask = (1u << p) - 1;
  long i = 0;
  if (lanes == 8) {
    u32 a = x[0], b = x[1], c = x[2], d = x[3], e = x[4], f = x[5], g = x[6], h = x[7];
    for (; i + 8 <= n && end - in >= 16; i += 8) {
      STEP(a, i) STEP(b, i + 1) STEP(c, i + 2) STEP(d, i + 3)
      STEP(e, i + 4) STEP(f, i + 5) STEP(g, i + 6) STEP(h, i + 7)
    }
    x[0] = a, x[1] = b, x[2] = c, x[3] = d, x[4] = e, x[5] = f, x[6] = g, x[7] = h;
  } else if (lanes == 4) {
    u32 a = x[0], b = x[1], c = x[2], d = x[3];
    for (; i + 4 <= n && end - in >= 8; i += 4) {
      STEP(a, i) STEP(b, i + 1) STEP(c, i + 2) STEP(d, i + 3)
    }
    x[0] = a, x[1] = b, x[2] = c, x[3] = d;
  }
  for (; i < n; i++) {
    u32 k = (u32)i & (lanes - 1), slot = x[k] & mask, e = slots[slot];
    out[i] = symbols[slot];
    u32 y = (e >> 16) * (x[k] >> p) + (e & 65535);
    if (y < LOW) {
      if (end - in < 2) return ENDED;
      y = y << 16 | read16(in);
      in += 2;
    }
    x[k] = y;
  }
  for (u32 k = 0; k < lanes; k++)
    if (x[k] != LOW) return STATE;
  *at = in;
  return FINE;
}

/* Decode `in` to exactly n bytes, n at least 1, with `room` bytes of memory for tables. */
PUBLIC long hasten_rans_decode(const u8 *in, long size, u8 *out, long n, u32 *slots, long room) {
  u32 freq[256];
  if (size < 4) return SHORT;
  u32 p = 8 + (in[0] & 7), lanes = 1u << (in[0] >> 3 & 3), least = in[0] >> 5;
  u32 often = in[1], first = in[2], span = in[3];
  if (room < 5l << p) return TABLE;
  const u8 *at = in + 4, *end = in + size;
  u64 b = 0;
  u32 have = 0, left = 1u << p;
  for (int s = 0; s < 256; s++) freq[s] = 0;
  for (u32 k = 0; k < span; k++) {
    u32 s = (first + k) & 255;
    if (s == often) continue;
    for (; have <= 56 && at < end; have += 8) b |= (u64)*at++ << have;
    u32 zeros = 0;
    while (zeros < p && !(b >> zeros & 1)) zeros++;
    u32 bits = zeros + least, all = zeros + 1 + bits;
    if (zeros == p) return TABLE;
    if (all > have) return SHORT;
    freq[s] = (1u << bits) + ((u32)(b >> (zeros + 1)) & ((1u << bits) - 1)) - (1u << least);
    b >>= all;
    have -= all;
    if (freq[s] >= left) return TABLE; /* the most frequent one needs some, too */
    left -= freq[s];
  }
  at -= have / 8;
  have %= 8;
  if (b & ((1u << have) - 1)) return TABLE;
  freq[often] = left;
  if (end - at < 4l * lanes) return SHORT;
  u32 x[8];
  for (u32 k = 0; k < lanes; k++, at += 4)
    if ((x[k] = read32(at)) < LOW) return STATE;
  u8 *symbols = (u8 *)(slots + (1u << p));
  u32 slot = 0;
  for (u32 s = 0; s < 256; s++)
    for (u32 k = 0; k < freq[s]; k++, slot++) {
      slots[slot] = freq[s] << 16 | k;
      symbols[slot] = (u8)s;
    }
  int said = rans_some(&at, end, x, lanes, p, slots, symbols, out, n);
  if (said) return said;
  return at == end ? FINE : LEFT;
}

/* Code n bytes to the end of `out`, states first; return their size, or -1 past the room.

   Each byte that occurs has a frequency, and all of them are 2^p. */
PUBLIC long hasten_rans_encode(const u8 *in, long n, const u32 *freq, u32 p, u32 lanes, u8 *out, long room) {
  u32 start[256], sum = 0, x[8];
  u8 *at = out + room;
  for (int s = 0; s < 256; s++) start[s] = sum, sum += freq[s];
  for (int k = 0; k < 8; k++) x[k] = LOW;
  for (long i = n - 1; i >= 0; i--) {
    u32 s = in[i], f = freq[s], k = (u32)i & (lanes - 1);
    if (!f) return -1;
    if (x[k] >= (u64)f << (32 - p)) {
      if (at - out < 2) return -1;
      at -= 2;
      write16(at, x[k]);
      x[k] >>= 16;
    }
    x[k] = (x[k] / f << p) + x[k] % f + start[s];
  }
  if (at - out < 4l * lanes) return -1;
  for (u32 k = lanes; k-- > 0;) write32(at -= 4, x[k]);
  return out + room - at;
}

/* ---- Sparse: how many zeros lie before each value ---- */

#define SPREAD(type)                                                     \
  for (long k = 0; k < size; k++) {                                      \
    u64 gap = gaps[k];                                                   \
    at += gap;                                                           \
    if (gap == 255) continue;                                            \
    if (at >= elements || taken == count) return RANGE;                  \
    ((type *)out)[at++].v = ((const type *)values)[taken++].v;           \
  }

typedef struct { u8 v; } __attribute__((may_alias)) loose8;

/* Spread `count` values over `elements` of `width` bytes, which are zero. */
PUBLIC long hasten_spread(const u8 *gaps, long size, const u8 *values, u64 count, u32 width, u8 *out, u64 elements) {
  u64 at = 0, taken = 0;
  switch (width) {
  case 1: SPREAD(loose8) break;
  case 2: SPREAD(loose16) break;
  case 4: SPREAD(loose32) break;
  case 8: SPREAD(loose64) break;
  default: return RANGE;
  }
  return taken == count && at <= elements ? FINE : RANGE;
}

/* ---- Planes: all first bytes, all second ones, ... of elements that were turned left by one bit ---- */

PUBLIC long hasten_join(const u8 *planes, long elements, u32 width, u8 *restrict out) {
  const u8 *a = planes, *b = a + elements, *c = b + elements, *d = c + elements;
  if (width == 2) {
    for (long i = 0; i < elements; i++) {
      u32 w = a[i] | (u32)b[i] << 8;
      write16(out + 2 * i, w >> 1 | w << 15);
    }
  } else if (width == 4) {
    for (long i = 0; i < elements; i++) {
      u32 w = a[i] | (u32)b[i] << 8 | (u32)c[i] << 16 | (u32)d[i] << 24;
      write32(out + 4 * i, w >> 1 | w << 31);
    }
  } else if (width == 8) {
    for (long i = 0; i < elements; i++) {
      u64 w = 0;
      for (int k = 0; k < 8; k++) w |= (u64)planes[k * elements + i] << (8 * k);
      ((loose64 *)(out + 8 * i))->v = w >> 1 | w << 63;
    }
  } else {
    return RANGE;
  }
  return FINE;
}
