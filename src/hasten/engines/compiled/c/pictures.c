/* Loops over bytes in vectors of W bytes, of which there are W or more; included behind vectors.c. The last vector
   may overlap the one before. */

#define EACH(i, at, size) \
  for (long i = 0, at = 0; i < (size); i += W, at = i + W <= (size) ? i : (size)-W)
#define BYTES(from) (*(const N(vb_u) *)(from))
#define PUT(to, value) *(N(vb_u) *)(to) = value

INLINE void N(tabled)(u8 *y, const u8 *x, long size, const u8 *table) {
  EACH(i, at, size) PUT(y + at, N(looked_up)(BYTES(x + at), table));
}

INLINE void N(added)(u8 *y, const u8 *x, const u8 *z, long size, i32 a, i32 b, i32 offset, i32 shift, u8 low, u8 high) {
  EACH(i, at, size)
    PUT(y + at, N(clamped)(N(summed)(BYTES(x + at), BYTES(z + at), a, b, offset, shift), low, high));
}

/* A vector of bytes as floats; floats as bytes. */
INLINE N(vf) N(widened)(const u8 *from) {
  N(vi) whole;
#if AVX
  asm("vpmovzxbd %1, %0" : "=" ANY(whole) : "m"(*(const struct { u8 all[W / 4]; } *)from));
#else
  for (int i = 0; i < W / 4; i++) whole[i] = from[i];
#endif
  return __builtin_convertvector(whole, N(vf));
}

INLINE N(vb) N(narrowed)(N(vi) a, N(vi) b, N(vi) c, N(vi) d, i32 zero, u8 low, u8 high) {
  return N(clamped)(N(packed)(N(halved)(a, b), N(halved)(c, d), zero), low, high);
}

/* Products of x with factors, all of which are whole numbers as floats: exact until they are scaled. */
INLINE void N(gated)(u8 *y, const u8 *x, const float *factors, const float *less, long channels, float scale, i32 zero,
                     u8 low, u8 high) {
  const N(vf) scales = (N(vf)){0} + scale;
#define PART(n) \
  N(rounded_float)((N(widened)(x + at + n * W / 4) * *(const N(vf_u) *)(factors + at + n * W / 4) \
                    - *(const N(vf_u) *)(less + at + n * W / 4)) * scales)
  EACH(i, at, channels) PUT(y + at, N(narrowed)(PART(0), PART(1), PART(2), PART(3), zero, low, high));
#undef PART
}

/* Factors of 16 bits, one for each channel, in the order of `gated8`: of each vector of bytes, the first 8 of each 16
   channels lie before the last 8 of each. */
static void N(gate_factors)(i16 *to, const u8 *z, long channels, i32 zero, i32 factor) {
  EACH(i, at, channels)
    for (long part = 0; part < W / 8; part++)
      for (long k = 0; k < 8; k++)
        to[i + part % 2 * (W / 2) + part / 2 * 8 + k] = ((z[at + part * 8 + k] - zero) * factor + (1 << 14)) >> 15;
}

/* (x * factor + 2^14) >> 15. */
INLINE N(vh) N(scaled_half)(N(vh) x, N(vh) factor) {
#if AVX
  OF_TWO("pmulhrsw", x, x, factor);
#else
  for (int i = 0; i < W / 2; i++) x[i] = (x[i] * factor[i] + (1 << 14)) >> 15;
#endif
  return x;
}

/* Products of x with `gate_factors`. */
INLINE void N(gated8)(u8 *y, const u8 *x, const i16 *factors, long channels, i32 x_zero, int up, i32 zero, u8 low,
                      u8 high) {
  EACH(i, at, channels) {
    N(vh) first = (N(vh)){0} - (i16)x_zero, second = first;
    N(split_added)(&first, &second, BYTES(x + at));
    first = N(scaled_half)(first << up, *(const N(vh) *)(factors + i));
    second = N(scaled_half)(second << up, *(const N(vh) *)(factors + i + W / 2));
    PUT(y + at, N(clamped)(N(laned)(first, second, zero), low, high));
  }
}

INLINE void N(multiplied)(u8 *y, const u8 *x, const u8 *z, long size, float x_zero, float z_zero, float scale, i32 zero,
                          u8 low, u8 high) {
  const N(vf) scales = (N(vf)){0} + scale;
#define PART(n) \
  N(rounded_float)((N(widened)(x + at + n * W / 4) - x_zero) * (N(widened)(z + at + n * W / 4) - z_zero) * scales)
  EACH(i, at, size) PUT(y + at, N(narrowed)(PART(0), PART(1), PART(2), PART(3), zero, low, high));
#undef PART
}

/* The largest byte of a window of pixels, for each channel. */
INLINE void N(largest)(u8 *y, const u8 *x, long rows, long columns, long line, long pitch, long channels) {
  EACH(i, at, channels) {
    N(vb) most = BYTES(x + at);
#pragma GCC unroll 5
    for (long v = 0; v < rows; v++)
#pragma GCC unroll 5
      for (long h = 0; h < columns; h++) most = N(larger)(most, BYTES(x + v * line + h * pitch + at));
    PUT(y + at, most);
  }
}

/* The scaled sum of a window of pixels, for each channel, less a number. 256 pixels fit 16 bits. */
INLINE void N(averaged)(u8 *y, const u8 *x, long rows, long columns, long line, long pitch, long channels, i32 less,
                        float scale, i32 zero, u8 low, u8 high) {
  const long some = columns < 256 ? 256 / columns : 1;
  const N(vf) scales = (N(vf)){0} + scale;
  EACH(i, at, channels) {
    N(vi) sum1 = (N(vi)){0} - less, sum2 = sum1, sum3 = sum1, sum4 = sum1;
    for (long v = 0; v < rows; v += some)
      for (long h = 0; h < columns; h += 256) {
        const long bottom = rows - v < some ? rows : v + some, right = columns - h < 256 ? columns : h + 256;
        N(vh) first = {0}, second = {0};
        for (long down = v; down < bottom; down++)
          for (long across = h; across < right; across++)
            N(split_added)(&first, &second, BYTES(x + down * line + across * pitch + at));
        N(wide_added)(&sum1, &sum2, first);
        N(wide_added)(&sum3, &sum4, second);
      }
    const N(vh) one = N(halved)(N(rounded)(sum1, scales), N(rounded)(sum2, scales));
    const N(vh) two = N(halved)(N(rounded)(sum3, scales), N(rounded)(sum4, scales));
    PUT(y + at, N(clamped)(N(laned)(one, two, zero), low, high));
  }
}

/* Bytes of W floats divided by a step; `bound` is 2^20 steps. */
INLINE N(vb) N(quantized)(const float *x, float step, float inverse, float bound, i32 zero, u8 low, u8 high) {
#define PART(n) N(rounded_float)(N(divided)(*(const N(vf_u) *)(x + n * W / 4), step, inverse, bound))
  return N(narrowed)(PART(0), PART(1), PART(2), PART(3), zero, low, high);
#undef PART
}

/* Three planes of W bytes as pixels; `places` are those of each 16 bytes of the result in each plane. */
INLINE void N(woven)(u8 *y, N(vb) a, N(vb) b, N(vb) c, const u8 *places) {
#if WIDE && W == 32
#define SHUFFLED(from, number) N(shuffled)(from, N(repeated)(places + 16 * (number)))
  for (int part = 0; part < 3; part++) {
    const N(vb) all = SHUFFLED(a, part * 3) | SHUFFLED(b, part * 3 + 1) | SHUFFLED(c, part * 3 + 2);
    N(put_half)(y + 16 * part, all, 0);
    N(put_half)(y + 48 + 16 * part, all, 1);
  }
#undef SHUFFLED
#else
  u8 each[3][W];
  COPY(each[0], &a, W);
  COPY(each[1], &b, W);
  COPY(each[2], &c, W);
  for (int i = 0; i < W; i++)
    for (int plane = 0; plane < 3; plane++) y[3 * i + plane] = each[plane][i];
#endif
}

#if W == 16
/* 16 rows of 16 bytes become their columns: four times the first half is woven into the second. */
INLINE void turned(u8 *to, long pitch, const u8 *from, long line) {
#if X86 || ARM
  N(vb) row[16], next[16];
  for (int i = 0; i < 16; i++) row[i] = BYTES(from + i * line);
#pragma GCC unroll 4
  for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      LOW_BYTES(next[2 * i], row[i], row[i + 8]);
      HIGH_BYTES(next[2 * i + 1], row[i], row[i + 8]);
    }
    for (int i = 0; i < 16; i++) row[i] = next[i];
  }
  for (int i = 0; i < 16; i++) PUT(to + i * pitch, row[i]);
#else
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) to[i * pitch + j] = from[j * line + i];
#endif
}
#endif

/* W neighbouring pixels of 16 channels, each of which lies apart, as bytes with all channels of a pixel side by side. */
INLINE void N(gathered)(u8 *y, const float *x, long pixels, long channels, float step, float inverse, float bound,
                        i32 zero, u8 low, u8 high) {
  u8 apart[16 * W] __attribute__((aligned(64)));
  for (int channel = 0; channel < 16; channel++)
    PUT(apart + channel * W, N(quantized)(x + channel * pixels, step, inverse, bound, zero, low, high));
  for (int at = 0; at < W; at += 16) turned(y + at * channels, channels, apart + at, W);
}

#undef EACH
#undef BYTES
#undef PUT
#undef OF_TWO
#undef LOW_BYTES
#undef HIGH_BYTES
#undef LOW_WORDS
#undef HIGH_WORDS
#undef PREFIX
#undef WIDE
