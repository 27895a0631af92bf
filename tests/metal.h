// Declarations of the Metal Shading Language 2.4 that naga's translations of the kernels use, for Clang in its mode
// "C++ for OpenCL 2021", which has Metal's address spaces. Only types and names are checked, so function bodies here do
// not matter. tests/metal rewrites spellings of Metal's that Clang cannot read.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#define kernel
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
// Keywords of OpenCL that naga uses as names.
#define local local_
#define global global_
#define private private_

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

template<typename T> constexpr int lanes_of = 1;
#define VECTOR(T, N) \
    typedef T T##N __attribute__((ext_vector_type(N))); \
    template<> constexpr int lanes_of<T##N> = N; \
    namespace metal { using ::T##N; }
#define VECTORS(T) VECTOR(T, 2) VECTOR(T, 3) VECTOR(T, 4)
VECTORS(short)
VECTORS(int)
VECTORS(uint)
VECTORS(ulong)
VECTORS(half)
VECTORS(float)
// In Clang a comparison of vectors gives integers of the elements' size.
namespace metal {
typedef int2 bool2;
typedef int3 bool3;
typedef int4 bool4;
}
struct packed_char4 {
    char x, y, z, w;
};
template<> constexpr int lanes_of<packed_char4> = 4;

// Constructors from parts, `float4(float2, 0.0, 1.0)`, and casts, `static_cast<float4>(half4)`.
template<typename To, typename... From> To vector(From...) {
    constexpr int given = (lanes_of<From> + ... + 0);
    static_assert(given == lanes_of<To> || given == 1, "a vector is made of as many numbers as it has, or of one");
    return To {};
}

template<typename To, typename From> To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type takes types of one size");
    return To {};
}

namespace metal {
using ::uint;

// Overloads instead of templates, so that arguments of two types are ambiguous, as they are in Metal.
#define ORDER(T, CONDITION) T min(T, T); T max(T, T); T clamp(T, T, T); T abs(T); T select(T, T, CONDITION);
#define MATHS(T) \
    T sign(T); T exp(T); T exp2(T); T log(T); T sqrt(T); T rsqrt(T); T sin(T); T cos(T); T tanh(T); \
    T floor(T); T ceil(T); T rint(T); T trunc(T); T pow(T, T); T fma(T, T, T); T mix(T, T, T);
#define SIZES(T, INTEGER) ORDER(T, bool) ORDER(T##2, INTEGER##2) ORDER(T##3, INTEGER##3) ORDER(T##4, INTEGER##4)
SIZES(int, int)
SIZES(uint, int)
SIZES(half, short)
SIZES(float, int)
MATHS(half) MATHS(half2) MATHS(half3) MATHS(half4)
MATHS(float) MATHS(float2) MATHS(float3) MATHS(float4)
float dot(float2, float2);
float dot(float3, float3);
float dot(float4, float4);
bool all(int2);
bool all(int3);
bool all(int4);
bool any(int2);
bool any(int3);
bool any(int4);

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

// Matrices of Apple's units have 8 rows and columns, and are loaded through pointers to scalars.
template<typename T, int Columns, int Rows> struct simdgroup_matrix {};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
#define TO_AND_FROM(SPACE) \
    template<typename T, int C, int R> \
    void simdgroup_load(thread simdgroup_matrix<T, C, R>&, const SPACE T*, ulong = C, ulong2 = 0, bool = false); \
    template<typename T, int C, int R> \
    void simdgroup_store(simdgroup_matrix<T, C, R>, SPACE T*, ulong = C, ulong2 = 0, bool = false);
TO_AND_FROM(device)
TO_AND_FROM(threadgroup)
template<typename D, typename A, typename B, typename C, int K, int Columns, int Rows>
void simdgroup_multiply_accumulate(
    thread simdgroup_matrix<D, Columns, Rows>&, const thread simdgroup_matrix<A, K, Rows>&,
    const thread simdgroup_matrix<B, Columns, K>&, const thread simdgroup_matrix<C, Columns, Rows>&);
}
