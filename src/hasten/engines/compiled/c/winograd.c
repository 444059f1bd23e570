/* 3x3 convolutions of bytes with a quarter of the products: 4x4 results at once, from sums at 6x6 points. See
   operators/int8/winograd.py. Included behind dense8.c and words.c, whose vectors it has. */

/* What six neighbours are at six points: 0, 1, -1, 2, -2 and infinity. */
static inline void at_points(vh *to, vh a, vh b, vh c, vh d, vh e, vh f) {
  const vh p = e - (c << 2), q = d - (b << 2), r = e - c, t = (d - b) << 1;
  to[0] = ((a - c) << 2) + r;
  to[1] = p + q;
  to[2] = p - q;
  to[3] = r + t;
  to[4] = r - t;
  to[5] = f - d - (t << 1);
}

/* Tiles of padded rows at 36 points: of each point, all tiles' channels. Rows and pixels behind the last may be any. */
static void to_points(i16 *restrict to, const u8 *restrict from, long down, long across, long channels, long pitch,
                      long plane) {
  for (long y = 0; y < down; y++)
    for (long x = 0; x < across; x++)
      for (long c = 0; c < channels; c += WIDE / 2) {
        const u8 *at = from + 4 * (y * pitch + x * channels) + c;
        i16 *place = to + (y * across + x) * channels + c;
        vh made[6][6], line[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++, at += channels)
          at_points(made[j], words_of(at), words_of(at + pitch), words_of(at + 2 * pitch), words_of(at + 3 * pitch),
                    words_of(at + 4 * pitch), words_of(at + 5 * pitch));
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++) {
          at_points(line, made[0][i], made[1][i], made[2][i], made[3][i], made[4][i], made[5][i]);
#pragma GCC unroll 6
          for (int j = 0; j < 6; j++) *(vh *)(place + (i * 6 + j) * plane) = line[j];
        }
      }
}

/* Four results of sums at six points, times 24, 12, 6 and 6. */
static inline void of_points(vi *to, vi a, vi b, vi c, vi d, vi e, vi f) {
  const vi s = b + c, t = b - c, u = d + e, v = d - e;
  to[0] = a + u - (s << 2);
  to[1] = v - (t << 1);
  to[2] = u - s;
  to[3] = f + (v << 1) - t;
}

/* The 16 sums of a tile for one vector of channels, with the bias, of sums at 36 points. All wraps; the sum without the
   bias has 26 bits, and 954437177 * 9 is 1 in 32 bits. */
static inline void from_points(u8 *restrict to, const u8 *restrict from, long plane, long step, vi bias) {
  vi made[6][4], line[4];
#pragma GCC unroll 6
  for (int j = 0; j < 6; j++) {
#define AT(i) (*(const vi *)(from + ((i) * 6 + j) * plane))
    of_points(made[j], AT(0), AT(1), AT(2), AT(3), AT(4), AT(5));
#undef AT
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    of_points(line, made[0][i], made[1][i], made[2][i], made[3][i], made[4][i], made[5][i]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int left = (i > 2 ? 1 : 3 - i) + (j > 2 ? 1 : 3 - j);
      *(vi *)(to + (i * 4 + j) * step) = (line[j] * 954437177 >> left) + bias;
    }
  }
}
