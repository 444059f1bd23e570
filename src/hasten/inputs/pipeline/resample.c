/* Resizes pictures of three bytes a pixel across and down, in Pillow's whole numbers: see resample.py.

   It includes nothing and allocates nothing. The caller has checked that each window lies within its rows. */

typedef unsigned char u8;
typedef int i32;
typedef i32 four __attribute__((vector_size(16)));
typedef i32 sixteen __attribute__((vector_size(64), aligned(4), may_alias));
typedef u8 bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

#define PUBLIC __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

/* Bits behind the point of a weight, and half of 1. */
enum { BITS = 22, HALF = 1 << 21 };

INLINE sixteen load(const u8 *at) { return __builtin_convertvector(*(const bytes16 *)at, sixteen); }

/* Round sums, and keep them between 0 and 255. */
INLINE four rounded(four sums) {
    sums = (sums + HALF) >> BITS;
    sums &= ~(sums >> 31);
    four above = sums > 255;
    return (sums & ~above) | (above & 255);
}

/* Make each row narrower or wider. `weights` holds `taps` numbers for each output, a multiple of 4, each four
   times over, one for each byte of a pixel of four. `room` holds a row of such pixels and `taps` more. */
PUBLIC void hasten_across(
    const u8 *rows, long stride, long count, long width, const i32 *first, const i32 *weights, long taps,
    long outputs, u8 *out, u8 *room)
{
    for (long i = 0; i < 4 * taps; i++)
        room[4 * width + i] = 0;
    for (long row = 0; row < count; row++) {
        const u8 *from = rows + row * stride;
        for (long x = 0; x < width; x++) {
            room[4 * x] = from[3 * x];
            room[4 * x + 1] = from[3 * x + 1];
            room[4 * x + 2] = from[3 * x + 2];
            room[4 * x + 3] = 0;
        }
        const i32 *weight = weights;
        for (long x = 0; x < outputs; x++) {
            const u8 *at = room + 4 * (long)first[x];
            sixteen sum = {0};
            for (long tap = 0; tap < taps; tap += 4, at += 16, weight += 16)
                sum += load(at) * *(const sixteen *)weight;
            union { sixteen all; four parts[4]; } apart = {sum};
            four pixel = rounded(apart.parts[0] + apart.parts[1] + apart.parts[2] + apart.parts[3]);
            out[0] = (u8)pixel[0];
            out[1] = (u8)pixel[1];
            out[2] = (u8)pixel[2];
            out += 3;
        }
    }
}

INLINE void column(const u8 *at, long stride, const i32 *weights, long taps, u8 *out)
{
    sixteen sum = {0};
    for (long tap = 0; tap < taps; tap++, at += stride)
        sum += load(at) * weights[tap];
    sum = (sum + HALF) >> BITS;
    sum &= ~(sum >> 31);
    sixteen above = sum > 255;
    sum = (sum & ~above) | (above & 255);
    *(bytes16 *)out = __builtin_convertvector(sum, bytes16);
}

/* Make columns shorter or longer: `size` bytes of each row, at least 16. `weights` has room for `taps` numbers for
   each output, which takes `counts` of them. */
PUBLIC void hasten_down(
    const u8 *rows, long stride, long size, const i32 *first, const i32 *counts, const i32 *weights, long taps, long outputs,
    u8 *out)
{
    for (long y = 0; y < outputs; y++, weights += taps, out += size) {
        const u8 *from = rows + first[y] * stride;
        long x = 0;
        for (; x + 16 <= size; x += 16)
            column(from + x, stride, weights, counts[y], out + x);
        if (x < size)
            column(from + size - 16, stride, weights, counts[y], out + size - 16);
    }
}
