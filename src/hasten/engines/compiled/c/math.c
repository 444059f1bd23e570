/* Elementary functions without branches, so that a compiler can turn loops over them into vectors.

   Polynomials are least-squares fits with weights that even out the relative error, made anew for hasten
   (benchmarks/elementary.py prints them with their errors). Each function keeps NaN, and
   gives the limits at the infinities. */

typedef int i32;
typedef long long i64;
typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef unsigned u32;
typedef unsigned long long u64;

#define COPY(to, from, bytes) __builtin_memcpy(to, from, bytes)

static inline float as_float(i32 bits) { float value; COPY(&value, &bits, 4); return value; }
static inline i32 as_i32(float value) { i32 bits; COPY(&bits, &value, 4); return bits; }
static inline double as_double(i64 bits) { double value; COPY(&value, &bits, 8); return value; }
static inline i64 as_i64(double value) { i64 bits; COPY(&bits, &value, 8); return bits; }

#define NAN_F __builtin_nanf("")
#define INF_F __builtin_inff()
#define NAN_D __builtin_nan("")
#define INF_D __builtin_inf()

static inline float exp_f(float x) {
  float z = x > 89.0f ? 89.0f : x;
  z = z < -104.0f ? -104.0f : z;
  float n = __builtin_rintf(z * 1.44269504088896341f);
  float r = (z - n * 0.693145751953125f) - n * 1.42860677e-6f;
  float p = 1.9919377519e-4f;
  p = p * r + 1.3947224943e-3f;
  p = p * r + 8.3332629874e-3f;
  p = p * r + 4.1666254401e-2f;
  p = p * r + 1.6666667163e-1f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  i32 whole = (i32)n, half = whole >> 1;
  return (p * as_float((half + 127) << 23)) * as_float((whole - half + 127) << 23);
}

static inline double exp_d(double x) {
  double z = x > 710.0 ? 710.0 : x;
  z = z < -746.0 ? -746.0 : z;
  double n = __builtin_rint(z * 1.4426950408889634);
  double r = (z - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  double p = -0x1.c76249454a2e4p-30;
  p = p * r + 0x1.b8b5476ad25b9p-26;
  p = p * r + 0x1.2924225607042p-22;
  p = p * r + 0x1.71d84b3754e7cp-19;
  p = p * r + 0x1.a01978baa201cp-16;
  p = p * r + 0x1.a01a041c84d18p-13;
  p = p * r + 0x1.6c16c1826550dp-10;
  p = p * r + 0x1.11111110a99fap-7;
  p = p * r + 0x1.5555555553e06p-5;
  p = p * r + 0x1.555555555563bp-3;
  p = p * r + 0x1.0000000000002p-1;
  p = (p * r) * r + r + 1.0;
  i64 whole = (i32)n, half = whole >> 1;
  return (p * as_double((half + 1023) << 52)) * as_double((whole - half + 1023) << 52);
}

static inline float log_f(float x) {
  /* A denormal is scaled up first. */
  float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
  i32 bits = as_i32(scaled);
  i32 n = ((bits - 0x3f3504f3) >> 23);
  float f = as_float(bits - (n << 23)) - 1.0f;
  float e = (float)n - (x < 1.17549435e-38f ? 23.0f : 0.0f);
  float p = 6.9153681397e-2f;
  p = p * f - 1.1789807677e-1f;
  p = p * f + 1.1872976273e-1f;
  p = p * f - 1.2384348363e-1f;
  p = p * f + 1.4218658209e-1f;
  p = p * f - 1.6669251025e-1f;
  p = p * f + 2.0002226532e-1f;
  p = p * f - 2.4999986589e-1f;
  p = p * f + 3.3333310485e-1f;
  float y = (p * f) * f * f - 0.5f * f * f + e * 1.42860677e-6f;
  y = y + f + e * 0.693145751953125f;
  y = x == INF_F ? INF_F : y;
  y = x == 0.0f ? -INF_F : y;
  return x >= 0.0f ? y : NAN_F;
}

/* log(x) in double: log(m) = 2 atanh(s), s = (m - 1) / (m + 1), by the series up to s^21. */
static inline double log_d(double x) {
  double scaled = x < 2.2250738585072014e-308 ? x * 4503599627370496.0 : x;
  i64 bits = as_i64(scaled);
  i64 n = ((bits - 0x3fe6a09e667f3bcdLL) >> 52);
  double f = as_double(bits - (n << 52)) - 1.0;
  double e = (double)n - (x < 2.2250738585072014e-308 ? 52.0 : 0.0);
  double s = f / (2.0 + f), t = s * s;
  double p = 1.0 / 21;
  p = p * t + 1.0 / 19;
  p = p * t + 1.0 / 17;
  p = p * t + 1.0 / 15;
  p = p * t + 1.0 / 13;
  p = p * t + 1.0 / 11;
  p = p * t + 1.0 / 9;
  p = p * t + 1.0 / 7;
  p = p * t + 1.0 / 5;
  p = p * t + 1.0 / 3;
  double y = 2.0 * s + 2.0 * s * t * p + e * 0x1.a39ef35793c76p-33 + e * 0x1.62e42feep-1;
  y = x == INF_D ? INF_D : y;
  y = x == 0.0 ? -INF_D : y;
  return x >= 0.0 ? y : NAN_D;
}

static inline float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }
static inline double sigmoid_d(double x) { return 1.0 / (1.0 + exp_d(-x)); }

static inline float tanh_f(float x) {
  float a = x < 0 ? -x : x, s = x * x;
  float p = -5.7170367800e-3f;
  p = p * s + 2.0650578663e-2f;
  p = p * s - 5.3743496537e-2f;
  p = p * s + 1.3331490755e-1f;
  p = p * s - 3.3333283663e-1f;
  float near = x + x * s * p;
  float far = 1.0f - 2.0f / (exp_f(a + a) + 1.0f);
  far = x < 0 ? -far : far;
  return a < 0.625f ? near : far;
}

static inline double tanh_d(double x) {
  double a = x < 0 ? -x : x, s = x * x;
  double p = -0x1.318fb7cf1ed2dp-16;
  p = p * s + 0x1.58bb55f967671p-14;
  p = p * s - 0x1.ea29e77e19466p-13;
  p = p * s + 0x1.34f91367b9fbbp-11;
  p = p * s - 0x1.7db1c828324f6p-10;
  p = p * s + 0x1.d6d7ba39a75fap-9;
  p = p * s - 0x1.226e6908f8773p-7;
  p = p * s + 0x1.664f4b61c9ffap-6;
  p = p * s - 0x1.ba1ba1d0361bdp-5;
  p = p * s + 0x1.1111111139a80p-3;
  p = p * s - 0x1.5555555555876p-2;
  double near = x + x * s * p;
  double far = 1.0 - 2.0 / (exp_d(a + a) + 1.0);
  far = x < 0 ? -far : far;
  return a < 0.625 ? near : far;
}

static inline float erf_f(float x) {
  float a = x < 0 ? -x : x, s = x * x;
  float p = 7.8892911667e-5f;
  p = p * s - 8.0208409391e-4f;
  p = p * s + 5.1895352080e-3f;
  p = p * s - 2.6854444295e-2f;
  p = p * s + 1.1283600330e-1f;
  p = p * s - 3.7612625957e-1f;
  float near = x + x * (p * s + 1.2837916613e-1f);
  float t = a > 4.0f ? 4.0f : a;
  float q = 1.3970605323e-5f;
  q = q * t - 3.2949485467e-4f;
  q = q * t + 3.5265460610e-3f;
  q = q * t - 2.2985758260e-2f;
  q = q * t + 1.0417606682e-1f;
  q = q * t - 3.6207634211e-1f;
  q = q * t + 1.1267796947f;
  q = q * t + 5.0034793094e-4f;
  float far = 1.0f - exp_f(-s - q);
  far = x < 0 ? -far : far;
  return a < 1.0f ? near : far;
}

/* max and min as ONNX has them: NaN where either is NaN. */
#define MAX(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define MIN(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))

/* Whole numbers: a division by 0, at which the processor would trap, refuses the request, and others wrap. A divisor that
   isn't constant is hidden first: of a cast float a compiler may believe that it is never 0. */
#define DIVIDED(a, b, minus, other) ({ \
  const __typeof__((a) + 0) n = (a); \
  __typeof__((b) + 0) d = (b); \
  if (!__builtin_constant_p(d)) asm("" : "+r"(d)); \
  d == 0 ? c->beyond[1] = c->beyond[1] ? c->beyond[1] : -1, 0 : d == -1 ? minus : other; })
#define QUOTIENT(a, b) DIVIDED(a, b, (__typeof__(n))(0 - (u64)n), n / d)
#define REMAINDER(a, b) DIVIDED(a, b, 0, n % d)
#define MODULO(a, b) DIVIDED(a, b, 0, n % d != 0 && (n % d < 0) != (d < 0) ? n % d + d : n % d)

/* x - trunc(x / y) * y, exact: each turn takes as many times y as a double has room for. */
static inline float fmod_f(float x, float y) {
  double a = x < 0 ? -(double)x : (double)x, b = y < 0 ? -(double)y : (double)y;
  if (!(a < INF_D) || !(b > 0)) return NAN_F;
  while (a >= b) {
    double times = __builtin_trunc(a / b);
    times = times < 0x1p28 ? times : as_double(as_i64(times) & ~0xffffffLL);
    a -= times * b;
    a = a < 0 ? a + b : a;
  }
  return (float)(as_i64((double)x) < 0 ? -a : a);
}

/* sin(x + turns * pi / 2) by the series up to r^17 on [-pi/4, pi/4]; the reduction by three parts of pi / 2
   is exact to |x| of some 10^6, loses digits slowly beyond, and has none left from some 10^15 on, where the
   result is any number from -1 to 1. */
static inline double sine_d(double x, double turns) {
  double n = __builtin_rint(x * 0.63661977236758134308);
  double r = ((x - n * 0x1.921fb544p0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
  r = r > 1.0 ? 1.0 : r < -1.0 ? -1.0 : r;
  double s = r * r, k = n + turns;
  k = k - 4.0 * __builtin_floor(k * 0.25);
  double p = 1.0 / 355687428096000.0;
  p = p * s - 1.0 / 1307674368000.0;
  p = p * s + 1.0 / 6227020800.0;
  p = p * s - 1.0 / 39916800.0;
  p = p * s + 1.0 / 362880.0;
  p = p * s - 1.0 / 5040.0;
  p = p * s + 1.0 / 120.0;
  p = p * s - 1.0 / 6.0;
  double odd = r + r * s * p;
  double q = 1.0 / 20922789888000.0;
  q = q * s - 1.0 / 87178291200.0;
  q = q * s + 1.0 / 479001600.0;
  q = q * s - 1.0 / 3628800.0;
  q = q * s + 1.0 / 40320.0;
  q = q * s - 1.0 / 720.0;
  q = q * s + 1.0 / 24.0;
  double even = 1.0 - 0.5 * s + s * s * q;
  double y = k == 1.0 || k == 3.0 ? even : odd;
  return k >= 2.0 ? -y : y;
}

static inline double sin_d(double x) { return sine_d(x, 0.0); }
static inline double cos_d(double x) { return sine_d(x, 1.0); }
static inline float sin_f(float x) { return (float)sine_d(x, 0.0); }
static inline float cos_f(float x) { return (float)sine_d(x, 1.0); }

/* C's pow; in double good to some 10^-13 where the result is very large or small. */
static inline double pow_d(double x, double y) {
  double a = x < 0 ? -x : x, half = 0.5 * y;
  double z = exp_d(y * log_d(a));
  int whole = __builtin_rint(y) == y, odd = whole && __builtin_rint(half) != half;
  int negative = as_i64(x) < 0;
  z = a == 1.0 && (y == INF_D || y == -INF_D) ? 1.0 : z;
  z = negative && odd ? -z : z;
  z = x < 0 && !whole && a != INF_D ? NAN_D : z;
  z = x != x ? x : z;
  return y == 0.0 || x == 1.0 ? 1.0 : z;
}

static inline float pow_f(float x, float y) { return (float)pow_d(x, y); }
