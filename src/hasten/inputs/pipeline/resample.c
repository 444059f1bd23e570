/* Resizes pictures of three bytes a pixel across and down, in Pillow's whole numbers: see resample.py.

   It includes nothing and allocates nothing. The caller has checked that each window lies within its rows.
   Instructions are named, because compilers take single bytes where they convert bytes to integers. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef i32 four __attribute__((vector_size(16)));
typedef struct { u32 v; } __attribute__((packed, may_alias)) loose32;

#define PUBLIC __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

/* Bits behind the point of a weight, and half of 1. */
enum { BITS = 22, HALF = 1 << 21 };

#if defined(__AVX512F__)
enum { LANES = 16 };
typedef i32 lanes __attribute__((vector_size(64)));
typedef struct { u8 b[16]; } __attribute__((packed, may_alias)) some_bytes;
#elif defined(__AVX2__)
enum { LANES = 8 };
typedef i32 lanes __attribute__((vector_size(32)));
typedef struct { u8 b[8]; } __attribute__((packed, may_alias)) some_bytes;
#else
#error "AVX2 is needed to be faster than Pillow"
#endif
typedef lanes loose __attribute__((aligned(4), may_alias));

/* Bytes as integers. Sanitizers don't see what named instructions read. */
INLINE lanes load(const u8 *at) {
    lanes found;
#if defined(SANITIZED)
    for (int k = 0; k < LANES; k++)
        found[k] = at[k];
#else
    __asm__("vpmovzxbd %1, %0" : "=v"(found) : "m"(*(const some_bytes *)at));
#endif
    return found;
}

/* Four sums, rounded and kept between 0 and 255, as bytes. */
INLINE u32 pixel(four sums) {
    sums = (sums + HALF) >> BITS;
    __asm__("vpackssdw %0, %0, %0\n\tvpackuswb %0, %0, %0" : "+x"(sums));
    return (u32)sums[0];
}

INLINE four folded(lanes sums) {
    union { lanes all; four parts[LANES / 4]; } apart = {sums};
    four found = apart.parts[0] + apart.parts[1];
    for (int k = 2; k < LANES / 4; k++)
        found += apart.parts[k];
    return found;
}

/* Make rows narrower or wider. `columns` is the number of pixels of a row that any output takes. `weights` holds
   `taps` numbers for each output, a multiple of 4, each four times over, one for each byte of a pixel of four.
   `room` holds `columns` such pixels and `taps` more. */
PUBLIC void hasten_across(
    const u8 *rows, long stride, long count, long columns, const i32 *first, const i32 *weights, long taps,
    long outputs, u8 *out, u8 *room)
{
    for (long i = 0; i < 4 * taps; i++)
        room[4 * columns + i] = 0;
    for (long row = 0; row < count; row++) {
        const u8 *from = rows + row * stride;
        /* The fourth byte is the next pixel's first; nothing reads what becomes of it. */
        for (long x = 0; x < columns - 1; x++)
            ((loose32 *)room)[x].v = ((const loose32 *)(from + 3 * x))->v;
        for (long i = 0; i < 3; i++)
            room[4 * (columns - 1) + i] = from[3 * (columns - 1) + i];
        const i32 *weight = weights;
        for (long x = 0; x < outputs; x++) {
            const u8 *at = room + 4 * (long)first[x];
            lanes sum = {0}, other = {0};
            for (long tap = 0; tap < taps; tap += 4, at += 16, weight += 16) {
                sum += load(at) * *(const loose *)weight;
                if (LANES == 8)
                    other += load(at + 8) * *(const loose *)(weight + 8);
            }
            u32 bytes = pixel(folded(sum + other));
            if (x < outputs - 1)
                ((loose32 *)out)->v = bytes; /* the fourth is overwritten by the next */
            else
                for (int i = 0; i < 3; i++)
                    out[i] = (u8)(bytes >> 8 * i);
            out += 3;
        }
    }
}

/* One output of `LANES` columns. */
INLINE void column(const u8 *at, long stride, const i32 *weights, long taps, u8 *out) {
    lanes sum = {0};
    for (long tap = 0; tap < taps; tap++, at += stride)
        sum += load(at) * weights[tap];
    union { lanes all; four parts[LANES / 4]; } apart = {sum};
    for (int k = 0; k < LANES / 4; k++)
        ((loose32 *)out)[k].v = pixel(apart.parts[k]);
}

/* Make columns shorter or longer: `size` bytes of each row, at least 16. `weights` has room for `taps` numbers for
   each output, which takes `counts` of them. */
PUBLIC void hasten_down(
    const u8 *rows, long stride, long size, const i32 *first, const i32 *counts, const i32 *weights, long taps,
    long outputs, u8 *out)
{
    for (long y = 0; y < outputs; y++, weights += taps, out += size) {
        const u8 *from = rows + first[y] * stride;
        long x = 0;
        for (; x + LANES <= size; x += LANES)
            column(from + x, stride, weights, counts[y], out + x);
        if (x < size)
            column(from + size - LANES, stride, weights, counts[y], out + size - LANES);
    }
}

/* One row made narrower or wider by OpenCV's rule, with four bits of each sum dropped. */
INLINE void paired(const u8 *from, const i32 *columns, long wide, int channels, i32 *out) {
    for (long x = 0; x < wide; x++, columns += 4, out += channels) {
        const u8 *first = from + columns[0], *second = from + columns[1];
        for (int k = 0; k < channels; k++)
            out[k] = (first[k] * columns[2] + second[k] * columns[3]) >> 4;
    }
}

/* Resize as OpenCV's bilinear filter does: see opencv.py. `down` and `columns` have four numbers for each row and column
   of the result: the places of two source rows, or of two pixels in bytes, and their weights. `channels` is 1 or 3.
   `room` holds two rows of the result. */
PUBLIC void hasten_linear(
    const u8 *rows, long stride, const i32 *down, long high, const i32 *columns, long wide, long channels, u8 *out,
    i32 *room)
{
    long size = wide * channels, held[2] = {-1, -1};
    i32 *lines[2] = {room, room + size};
    for (long y = 0; y < high; y++, down += 4, out += size) {
        int at[2];
        for (int k = 0; k < 2; k++) {
            if (held[0] == down[k] || held[1] == down[k]) {
                at[k] = held[1] == down[k];
                continue;
            }
            /* The other one of this pair stays. */
            int free = k == 1 ? !at[0] : held[0] == down[1];
            if (channels == 3)
                paired(rows + down[k] * stride, columns, wide, 3, lines[free]);
            else
                paired(rows + down[k] * stride, columns, wide, 1, lines[free]);
            held[free] = down[k];
            at[k] = free;
        }
        const i32 *above = lines[at[0]], *below = lines[at[1]];
        i32 one = down[2], other = down[3];
        for (long x = 0; x < size; x++)
            out[x] = (u8)(((above[x] * one >> 16) + (below[x] * other >> 16) + 2) >> 2);
    }
}
