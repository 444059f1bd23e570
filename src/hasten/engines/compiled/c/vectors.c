/* Bytes and sums in vectors of W bytes; included once for each width, behind bytes.c. A sum is an int32, so a
   vector vi has W / 4 of them, and four vectors become one of bytes. Names end in the width: packed_32.
   Macros say which instructions there are: X86, AVX512 (with bw and vl), VNNI (1: with VEX, 2: with EVEX), VBMI. */

#define VECTOR(type, name) \
  typedef type N(name) __attribute__((vector_size(W), may_alias)); \
  typedef type N(name##_u) __attribute__((vector_size(W), aligned(1), may_alias));
VECTOR(i32, vi)
VECTOR(float, vf)
VECTOR(u8, vb)
VECTOR(i16, vh)
VECTOR(i64, vl)
#undef VECTOR

/* The nearest integers of scaled sums, halves to even. */
INLINE N(vi) N(rounded)(N(vi) sum, N(vf) scale) {
  N(vf) scaled = __builtin_convertvector(sum, N(vf)) * scale;
#if W > 16
  N(vi) found;
  asm("vcvtps2dq %1, %0" : "=" ANY(found) : ANY(scaled));
  return found;
#elif X86
  return (N(vi))__builtin_ia32_cvtps2dq((__attribute__((vector_size(16))) float)scaled);
#else
  const float most = 1 << 20, shift = 3 << 22;
  N(vi) above = scaled > most, below = scaled < -most;
  N(vf) most_all = (N(vf)){0} + most;
  scaled = (N(vf))(((N(vi))most_all & above) | ((N(vi))(-most_all) & below) | ((N(vi))scaled & ~(above | below)));
  return (N(vi))(scaled + shift) - as_i32(shift);
#endif
}

INLINE N(vb) N(largest)(N(vb) a, N(vb) b) {
#if W > 16
  asm("vpmaxub %1, %0, %0" : "+" ANY(a) : ANY(b));
  return a;
#else
  N(vb) above = (N(vb))(a > b);
  return (a & above) | (b & ~above);
#endif
}

INLINE N(vb) N(smallest)(N(vb) a, N(vb) b) {
#if W > 16
  asm("vpminub %1, %0, %0" : "+" ANY(a) : ANY(b));
  return a;
#else
  N(vb) above = (N(vb))(a > b);
  return (b & above) | (a & ~above);
#endif
}

INLINE N(vb) N(clamped)(N(vb) q, u8 low, u8 high) {
  if (low > 0) q = N(largest)(q, (N(vb)){0} + low);
  if (high < 255) q = N(smallest)(q, (N(vb)){0} + high);
  return q;
}

/* Bytes of four vectors, within each 16 bytes: 4 of a, 4 of b, 4 of c, 4 of d. */
INLINE N(vb) N(laned)(N(vi) a, N(vi) b, N(vi) c, N(vi) d, i32 zero) {
#if W > 16
  N(vh) ab, cd, zeros = (N(vh)){0} + (i16)zero;
  N(vb) all;
  asm("vpackssdw %2, %1, %0" : "=" ANY(ab) : ANY(a), ANY(b));
  asm("vpackssdw %2, %1, %0" : "=" ANY(cd) : ANY(c), ANY(d));
  if (zero) {
    asm("vpaddsw %1, %0, %0" : "+" ANY(ab) : ANY(zeros));
    asm("vpaddsw %1, %0, %0" : "+" ANY(cd) : ANY(zeros));
  }
  asm("vpackuswb %2, %1, %0" : "=" ANY(all) : ANY(ab), ANY(cd));
  return all;
#else
  N(vi) part[4] = {a + zero, b + zero, c + zero, d + zero};
#if X86
  typedef i32 four __attribute__((vector_size(16)));
  typedef short eight __attribute__((vector_size(16)));
  eight ab = __builtin_ia32_packssdw128((four)part[0], (four)part[1]);
  return (N(vb))__builtin_ia32_packuswb128(ab, __builtin_ia32_packssdw128((four)part[2], (four)part[3]));
#else
  N(vb) all;
  for (int i = 0; i < 16; i++) all[i] = clamp_byte(part[i / 4][i % 4], 0, 255);
  return all;
#endif
#endif
}

/* Bytes of four vectors one behind the other: a, b, c, d. */
INLINE N(vb) N(packed)(N(vi) a, N(vi) b, N(vi) c, N(vi) d, i32 zero) {
  N(vb) all = N(laned)(a, b, c, d, zero);
#if W == 32
  const N(vi) order = {0, 4, 1, 5, 2, 6, 3, 7};
#elif W == 64
  const N(vi) order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
#endif
#if W > 16
  asm("vpermd %1, %2, %0" : "=" ANY(all) : ANY(all), ANY(order));
#endif
  return all;
}

/* 16 bytes of memory in each 16 bytes. */
INLINE N(vb) N(repeated)(const u8 *from) {
  typedef u8 sixteen __attribute__((vector_size(16), aligned(1), may_alias));
#if W == 32
  N(vb) all;
  asm("vbroadcasti128 %1, %0" : "=x"(all) : "m"(*(const sixteen *)from));
#elif W == 64
  N(vb) all;
  asm("vbroadcasti32x4 %1, %0" : "=v"(all) : "m"(*(const sixteen *)from));
#else
  N(vb) all = (N(vb))*(const sixteen *)from;
#endif
  return all;
}

/* Each byte's entry of a table of 256. */
INLINE N(vb) N(looked_up)(N(vb) q, const u8 *table) {
#if W == 64 && VBMI
  N(vb) low = q, high = q;
  asm("vpermi2b %2, %1, %0" : "+v"(low) : "v"(*(const N(vb_u) *)table), "v"(*(const N(vb_u) *)(table + 64)));
  asm("vpermi2b %2, %1, %0" : "+v"(high) : "v"(*(const N(vb_u) *)(table + 128)), "v"(*(const N(vb_u) *)(table + 192)));
  u64 upper;
  asm("vpmovb2m %1, %0" : "=k"(upper) : "v"(q));
  asm("vmovdqu8 %1, %0 %{%2%}" : "+v"(low) : "v"(high), "k"(upper));
  return low;
#elif W > 16
  /* A shuffle takes 4 bits; each other bit of the number, shifted to the top of its byte, chooses of two. */
  N(vb) found[16], four = q & 15;
  N(vi) bits[4] = {(N(vi))q << 3, (N(vi))q << 2, (N(vi))q << 1, (N(vi))q};
  for (int i = 0; i < 16; i++) asm("vpshufb %1, %2, %0" : "=" ANY(found[i]) : ANY(four), ANY(N(repeated)(table + i * 16)));
#if W == 32
  for (int level = 0, left = 8; level < 4; level++, left /= 2)
    for (int i = 0; i < left; i++)
      asm("vpblendvb %3, %2, %1, %0" : "=x"(found[i]) : "x"(found[2 * i]), "x"(found[2 * i + 1]), "x"(bits[level]));
#else
  for (int level = 0, left = 8; level < 4; level++, left /= 2) {
    u64 chosen;
    asm("vpmovb2m %1, %0" : "=k"(chosen) : "v"(bits[level]));
    for (int i = 0; i < left; i++)
      asm("vpblendmb %2, %1, %0 %{%3%}" : "=v"(found[i]) : "v"(found[2 * i]), "v"(found[2 * i + 1]), "k"(chosen));
  }
#endif
  return found[0];
#else
  for (int i = 0; i < W; i++) q[i] = table[q[i]];
  return q;
#endif
}

/* (a * q + b * r + offset) >> shift of bytes, as bytes. */
INLINE N(vb) N(summed)(N(vb) q, N(vb) r, i32 a, i32 b, i32 offset, i32 shift) {
#if W > 16
  const N(vi) factors = (N(vi)){0} + (i32)((u32)b << 16 | (u32)(a & 0xffff));
  const N(vb) none = {0};
  N(vb) two[2], all;
  N(vi) sum[4];
  N(vh) half[2];
  asm("vpunpcklbw %2, %1, %0" : "=" ANY(two[0]) : ANY(q), ANY(r));
  asm("vpunpckhbw %2, %1, %0" : "=" ANY(two[1]) : ANY(q), ANY(r));
  for (int i = 0; i < 2; i++) {
    asm("vpunpcklbw %2, %1, %0" : "=" ANY(sum[2 * i]) : ANY(two[i]), ANY(none));
    asm("vpunpckhbw %2, %1, %0" : "=" ANY(sum[2 * i + 1]) : ANY(two[i]), ANY(none));
  }
  for (int i = 0; i < 4; i++) {
    asm("vpmaddwd %1, %0, %0" : "+" ANY(sum[i]) : ANY(factors));
    sum[i] = (sum[i] + offset) >> shift;
  }
  for (int i = 0; i < 2; i++)
    asm("vpackssdw %2, %1, %0" : "=" ANY(half[i]) : ANY(sum[2 * i]), ANY(sum[2 * i + 1]));
  asm("vpackuswb %2, %1, %0" : "=" ANY(all) : ANY(half[0]), ANY(half[1]));
  return all;
#else
  for (int i = 0; i < W; i++) q[i] = clamp_byte((a * q[i] + b * r[i] + offset) >> shift, 0, 255);
  return q;
#endif
}

/* The first half of a vector, or the second. */
INLINE void N(put_half)(u8 *to, N(vb) v, int second) {
#if W == 32
  if (second) asm("vextracti128 $1, %1, %0" : "=m"(*(struct { u8 all[16]; } *)to) : "x"(v));
  else asm("vmovdqu %x1, %0" : "=m"(*(struct { u8 all[16]; } *)to) : "x"(v));
#elif W == 64
  if (second) asm("vextracti64x4 $1, %1, %0" : "=m"(*(struct { u8 all[32]; } *)to) : "v"(v));
  else asm("vmovdqu8 %t1, %0" : "=m"(*(struct { u8 all[32]; } *)to) : "v"(v));
#else
  COPY(to, (u8 *)&v + 8 * second, 8);
#endif
}

/* Products of each sum's own TAPS bytes, or numbers of 16 bits, added to the sums. */
INLINE N(vi) N(dotted)(N(vi) sum, N(vi) x, N(vi) w) {
#if W > 16 && VNNI == 2
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
#elif W > 16 && VNNI == 1
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
  return sum;
#elif W > 16
  asm("vpmaddwd %2, %1, %0" : "=" ANY(x) : ANY(x), ANY(w));
  return sum + x;
#elif X86
  typedef short eight __attribute__((vector_size(16)));
  return sum + (N(vi))__builtin_ia32_pmaddwd128((eight)x, (eight)w);
#else
  return sum + ((x << 16) >> 16) * ((w << 16) >> 16) + (x >> 16) * (w >> 16);
#endif
}

/* Rows of a picture of bytes side by side, so that a sum's taps are neighbours: of each pixel of so many, `parts`
   vectors, each sum of which sees its own channel in TAPS rows. With 4 parts, channels lie in lanes. */
INLINE void N(braided)(u8 *to, const u8 *const *rows, long pixels, long pitch, int parts) {
#if W == 16
  for (long i = 0; i < pixels; i++)
    for (long channel = 0; channel < 4 * parts; channel++)
      for (long tap = 0; tap < 2; tap++) ((i16 *)to)[(i * 4 * parts + channel) * 2 + tap] = rows[tap][i * pitch + channel];
#else
#define UNPACK(how, to, a, b) asm("vpunpck" how " %2, %1, %0" : "=" ANY(to) : ANY(a), ANY(b))
  typedef u8 sixteen __attribute__((vector_size(16), may_alias));
  typedef u8 sixteen_u __attribute__((vector_size(16), aligned(1), may_alias));
  for (long i = 0; i < pixels; i++, to += parts * W) {
    const long at = i * pitch;
    if (parts == 4) {
      N(vb) a = *(const N(vb_u) *)(rows[0] + at), b = *(const N(vb_u) *)(rows[1] + at), low, high, all[4];
      UNPACK("lbw", low, a, b);
      UNPACK("hbw", high, a, b);
#if TAPS == 4
      N(vb) c = *(const N(vb_u) *)(rows[2] + at), d = *(const N(vb_u) *)(rows[3] + at), low2, high2;
      UNPACK("lbw", low2, c, d);
      UNPACK("hbw", high2, c, d);
      UNPACK("lwd", all[0], low, low2);
      UNPACK("hwd", all[1], low, low2);
      UNPACK("lwd", all[2], high, high2);
      UNPACK("hwd", all[3], high, high2);
#else
      const N(vb) none = {0};
      UNPACK("lbw", all[0], low, none);
      UNPACK("hbw", all[1], low, none);
      UNPACK("lbw", all[2], high, none);
      UNPACK("hbw", all[3], high, none);
#endif
      for (int part = 0; part < 4; part++) *(N(vb) *)(to + part * W) = all[part];
    } else {
      sixteen a = *(const sixteen_u *)(rows[0] + at), b = *(const sixteen_u *)(rows[1] + at), low, high;
      UNPACK("lbw", low, a, b);
      UNPACK("hbw", high, a, b);
#if TAPS == 4
      sixteen c = *(const sixteen_u *)(rows[2] + at), d = *(const sixteen_u *)(rows[3] + at), low2, high2, all[4];
      UNPACK("lbw", low2, c, d);
      UNPACK("hbw", high2, c, d);
      UNPACK("lwd", all[0], low, low2);
      UNPACK("hwd", all[1], low, low2);
      UNPACK("lwd", all[2], high, high2);
      UNPACK("hwd", all[3], high, high2);
      for (int part = 0; part < 2 * parts; part++) *(sixteen *)(to + part * 16) = all[part];
#else
      N(vb) first, second;
      asm("vpmovzxbw %1, %0" : "=" ANY(first) : ANY(low));
      *(N(vb) *)to = first;
      if (parts == 2) {
        asm("vpmovzxbw %1, %0" : "=" ANY(second) : ANY(high));
        *(N(vb) *)(to + W) = second;
      }
#endif
    }
  }
#undef UNPACK
#endif
}
