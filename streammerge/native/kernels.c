/* The loops that a merge spends its time in.

   A block goes through torch in a dozen calls or more, each of which reads and writes the cache and
   takes the interpreter's lock. Here a whole stretch of a tensor goes through all steps in one
   call. Each loop works on tiles: short runs of fp64 numbers, made from the bytes of any float
   dtype, that stay in the first level of the cache.

   Bits are the same on every processor, and those that torch computes in fp64 by the same steps:
   nothing is contracted (-ffp-contract=off) or reordered, whatever the width of its vectors. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BF16, FP16, FP32, FP64 }; /* as `native.KINDS` has them */
enum { TILE = 256 }; /* elements; inner products depend on it */
enum { AHEAD = 1024 }; /* bytes */
enum { GROUP = 8 }; /* elements that are looked at together */
enum { SLOT_BITS = 10 };

#define INLINE static inline __attribute__((always_inline))
/* One copy of the code for each generation of processors, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(ONE_TARGET)
#define EXPORT __attribute__((visibility("default"), \
    target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* What the library was compiled from. */
__attribute__((visibility("default"))) const char *source(void) { return SOURCE; }

typedef struct {
    void *data;
    int64_t kind;
} Tensor;

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE uint64_t bits_of_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float from_fp16(uint16_t code) {
    /* The exponent counts from 2^-15 instead of 2^-127, but for that of Inf and NaN. */
    uint32_t sign = (uint32_t)(code & 0x8000) << 16, rest = (uint32_t)(code & 0x7fff) << 13;
    uint32_t finite = bits_of(as_float(rest) * 0x1p112f);
    return as_float((rest >= 0x0f800000 ? rest | 0x7f800000 : finite) | sign);
}

/* Returns an element; the kind is known to the compiler, so that it can vectorize the loop. */
INLINE double element(int kind, const void *data, size_t i) {
    return kind == BF16   ? as_float((uint32_t)((const uint16_t *)data)[i] << 16)
           : kind == FP16 ? from_fp16(((const uint16_t *)data)[i])
           : kind == FP32 ? ((const float *)data)[i]
                          : ((const double *)data)[i];
}

/* Calls a function that goes over elements of a tensor from number `first`. */
#define BY_KIND(function, tensor, first, ...) \
    ((tensor).kind == BF16   ? function(BF16, (uint16_t *)(tensor).data + first, __VA_ARGS__) \
     : (tensor).kind == FP16 ? function(FP16, (uint16_t *)(tensor).data + first, __VA_ARGS__) \
     : (tensor).kind == FP32 ? function(FP32, (float *)(tensor).data + first, __VA_ARGS__) \
                             : function(FP64, (double *)(tensor).data + first, __VA_ARGS__))

/* Fills a tile with elements. */
INLINE void load(int kind, const void *data, size_t count, double *restrict tile) {
    for (size_t i = 0; i < count; i++) tile[i] = element(kind, data, i);
}

/* Has the tile after the next of a 16-bit tensor brought to the cache, or what comes sooner of a wider
   one: processors do so by themselves no further than to the end of a page of 4 KiB. */
INLINE void fetch_early(Tensor tensor, size_t first) {
    size_t size = tensor.kind == FP64 ? 8 : tensor.kind == FP32 ? 4 : 2;
    const char *next = (const char *)tensor.data + first * size + AHEAD;
    for (size_t i = 0; i < TILE * size; i += 64) __builtin_prefetch(next + i);
}

INLINE uint16_t to_bf16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}

INLINE uint16_t to_fp16(float value) {
    uint32_t bits = bits_of(value), rest = bits & 0x7fffffff;
    uint32_t normal = ((rest + 0xfff + (rest >> 13 & 1)) >> 13) - (112 << 10);
    /* Below 2^-14 all numbers are as far apart as those of fp32 from 1/2 on. */
    uint32_t small = bits_of(as_float(rest) + 0.5f) - 0x3f000000;
    uint32_t finite = rest < 0x38800000 ? small : normal;
    finite = rest >= 0x47800000 ? 0x7c00 : finite;
    return (rest > 0x7f800000 ? 0x7e00 : finite) | (bits >> 16 & 0x8000);
}

/* Puts numbers in fp32 where they belong; returns whether all results are finite. */
INLINE int store_single(const float *restrict values, Tensor to, size_t first, size_t count) {
    uint32_t largest = 0;
    if (to.kind == FP32) {
        for (size_t i = 0; i < count; i++) {
            uint32_t rest = bits_of(values[i]) & 0x7fffffff;
            largest = largest > rest ? largest : rest;
        }
        memcpy((float *)to.data + first, values, count * sizeof *values);
        return largest < 0x7f800000;
    }
    uint16_t *codes = (uint16_t *)to.data + first;
    uint16_t most = 0;
    if (to.kind == BF16)
        for (size_t i = 0; i < count; i++) codes[i] = to_bf16(values[i]);
    else
        for (size_t i = 0; i < count; i++) codes[i] = to_fp16(values[i]);
    for (size_t i = 0; i < count; i++) {
        uint16_t rest = codes[i] & 0x7fff;
        most = most > rest ? most : rest;
    }
    return most < (to.kind == BF16 ? 0x7f80 : 0x7c00);
}

/* The fp32 number next to a value, or where that is not exact, the neighbour whose last bit is
   odd: from there a second rounding goes the right way (Boldo and Melquiond, "Emulation of FMA and
   correctly rounded sums", 2008). */
INLINE float to_odd(double value) {
    float near = (float)value;
    uint32_t bits = bits_of(near);
    uint32_t outwards = fabs((double)near) < fabs(value) ? bits + 1 : bits - 1;
    return as_float((double)near != value && value == value && !(bits & 1) ? outwards : bits);
}

/* Whether any of the numbers may lie half-way between two numbers of a 16-bit dtype. */
INLINE int halfway(const float *restrict values, int64_t kind, size_t count) {
    uint32_t found = 0, dropped = kind == BF16 ? 0xffff : 0x1fff, half = dropped / 2 + 1;
    uint32_t smallest_normal = kind == BF16 ? 0 : 0x38800000; /* below, more bits are dropped */
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(values[i]);
        found |= ((bits & dropped) == half) | ((bits & 0x7fffffff) < smallest_normal);
    }
    return found != 0;
}

/* Rounds a tile once, to nearest and ties to even; returns whether all results are finite. */
INLINE int store(const double *restrict tile, Tensor to, size_t first, size_t count) {
    float single[TILE];
    if (to.kind == FP64) {
        memcpy((double *)to.data + first, tile, count * sizeof *tile);
        uint64_t largest = 0;
        for (size_t i = 0; i < count; i++) {
            uint64_t rest = bits_of_double(tile[i]) & INT64_MAX;
            largest = largest > rest ? largest : rest;
        }
        return largest < 0x7ff0000000000000;
    }
    for (size_t i = 0; i < count; i++) single[i] = (float)tile[i];
    if (to.kind != FP32 && halfway(single, to.kind, count))
        for (size_t i = 0; i < count; i++) single[i] = to_odd(tile[i]);
    return store_single(single, to, first, count);
}

/* Adds weight * element to each sum of a tile. */
INLINE void add_products(int kind, const void *data, size_t count, double weight,
                         double *restrict sum) {
    for (size_t i = 0; i < count; i++) sum[i] += element(kind, data, i) * weight;
}

/* Fills a tile with weight * element in fp32. */
INLINE void load_products(int kind, const void *data, size_t count, float weight,
                          float *restrict sum) {
    for (size_t i = 0; i < count; i++) sum[i] = (float)element(kind, data, i) * weight;
}

/* Adds weight * element to each sum of a tile in fp32. Returns 0 if all sums are exact, by what the
   additions have lost (Knuth, "The Art of Computer Programming", volume 2, 4.2.2). */
INLINE uint32_t add_exactly(int kind, const void *data, size_t count, float weight,
                            float *restrict sum) {
    uint32_t lost = 0;
    for (size_t i = 0; i < count; i++) {
        float term = (float)element(kind, data, i) * weight, before = sum[i];
        float after = before + term, added = after - before;
        float error = (before - (after - added)) + (term - added);
        lost |= bits_of(error) << 1; /* a zero may have a sign */
        sum[i] = after;
    }
    return lost;
}

/* Computes what `weighted_sum` does for a tile, if no sum is rounded in fp32; returns whether that
   is so and all results are finite. */
INLINE int sum_in_fp32(const Tensor *inputs, size_t models, const double *weights, double divisor,
                       Tensor out, size_t first, size_t count) {
    float sum[TILE], by = (float)divisor, factor = 1 / by;
    uint32_t lost = 0;
    BY_KIND(load_products, inputs[0], first, count, (float)weights[0], sum);
    for (size_t k = 1; k < models; k++)
        lost |= BY_KIND(add_exactly, inputs[k], first, count, (float)weights[k], sum);
    if (lost) return 0;
    if (bits_of(by) << 9) /* no power of two */
        for (size_t i = 0; i < count; i++) sum[i] /= by;
    else
        for (size_t i = 0; i < count; i++) sum[i] *= factor;
    return store_single(sum, out, first, count);
}

/* Computes sum(weights[k] * inputs[k]) / divisor; returns whether all results are finite.

   in_fp32: products are exact in fp32, and sums that are so too may be divided there: that gives the
   same result sooner. */
EXPORT int weighted_sum(const Tensor *inputs, size_t models, const double *weights, double divisor,
                        int in_fp32, Tensor out, size_t count) {
    double total[TILE];
    int finite = 1;
    for (size_t first = 0; first < count; first += TILE) {
        size_t length = count - first < TILE ? count - first : TILE;
        for (size_t k = 0; k < models; k++) fetch_early(inputs[k], first);
        if (in_fp32 && sum_in_fp32(inputs, models, weights, divisor, out, first, length)) continue;
        BY_KIND(load, inputs[0], first, length, total);
        for (size_t i = 0; i < length; i++) total[i] *= weights[0];
        for (size_t k = 1; k < models; k++)
            BY_KIND(add_products, inputs[k], first, length, weights[k], total);
        if (divisor != 1)
            for (size_t i = 0; i < length; i++) total[i] /= divisor;
        finite &= store(total, out, first, length);
    }
    return finite;
}

/* Subtracts elements from a tile. */
INLINE void subtract(int kind, const void *data, size_t count, double *restrict tile) {
    for (size_t i = 0; i < count; i++) tile[i] -= element(kind, data, i);
}

/* Fills a tile with vector - origin, or the vector itself where there is no origin. */
INLINE void load_difference(Tensor vector, const Tensor *origin, size_t first, size_t count,
                            double *restrict tile) {
    BY_KIND(load, vector, first, count, tile);
    if (origin) BY_KIND(subtract, *origin, first, count, tile);
}

/* Computes the inner products of all pairs of vectors, the upper triangle of their matrix by rows.

   A product has TILE sums: sum j has the elements j, j + TILE, j + 2 TILE ... one after the other.
   At the end the upper half of the sums is added to the lower, until there is one.

   finite_only: what is not finite counts as zero.
   vectors: room for a tile of each.
   sums: room for a tile of each pair; the products are the first of each. */
EXPORT void inner_products(const Tensor *inputs, size_t models, const Tensor *origin, size_t count,
                           int finite_only, double *restrict vectors, double *restrict sums) {
    size_t pairs = models * (models + 1) / 2;
    memset(sums, 0, pairs * TILE * sizeof *sums);
    for (size_t first = 0; first < count; first += TILE) {
        size_t length = count - first < TILE ? count - first : TILE;
        if (origin) fetch_early(*origin, first);
        for (size_t k = 0; k < models; k++) {
            double *vector = vectors + k * TILE;
            fetch_early(inputs[k], first);
            load_difference(inputs[k], origin, first, length, vector);
            if (finite_only)
                for (size_t i = 0; i < length; i++) vector[i] = isfinite(vector[i]) ? vector[i] : 0;
        }
        double *sum = sums;
        for (size_t k = 0; k < models; k++)
            for (size_t l = k; l < models; l++, sum += TILE) {
                const double *a = vectors + k * TILE, *b = vectors + l * TILE;
                for (size_t i = 0; i < length; i++) sum[i] += a[i] * b[i];
            }
    }
    for (double *sum = sums; sum < sums + pairs * TILE; sum += TILE)
        for (size_t half = TILE / 2; half; half /= 2)
            for (size_t i = 0; i < half; i++) sum[i] += sum[i + half];
}

typedef struct {
    int64_t key;
    int64_t count;
} Tally;

/* Counts a key where its slot is free or its own already; returns whether it did. */
INLINE int count_key(Tally *restrict slots, int64_t key) {
    Tally *slot = slots + ((uint64_t)key * 0x9e3779b97f4a7c15 >> (64 - SLOT_BITS));
    if (!slot->count) slot->key = key;
    slot->count += slot->key == key;
    return slot->key == key;
}

/* Tallies the keys of vector - origin, the bits of |x| in fp64, from `low` to `high`.

   Differences of 16-bit numbers have few values, some of them very often.

   slots: 2^SLOT_BITS of them, all zero; get keys and how often each is there.
   others: room for all keys; gets those whose slot another key has.
   above: gets the number of keys that are higher than `high`.
   Returns the number of others. */
EXPORT size_t keys_between(Tensor vector, const Tensor *origin, size_t count, int64_t low,
                           int64_t high, Tally *restrict slots, int64_t *restrict others,
                           size_t *above) {
    double tile[TILE];
    int64_t keys[TILE], inside[TILE];
    uint8_t is_inside[TILE];
    size_t rest = 0, higher = 0;
    for (size_t first = 0; first < count; first += TILE) {
        size_t length = count - first < TILE ? count - first : TILE, over = 0, found = 0;
        load_difference(vector, origin, first, length, tile);
        memset(is_inside, 0, TILE);
        for (size_t i = 0; i < length; i++) {
            keys[i] = (int64_t)(bits_of_double(tile[i]) & INT64_MAX);
            over += keys[i] > high;
            is_inside[i] = (keys[i] >= low) & (keys[i] <= high);
        }
        higher += over;
        for (size_t group = 0; group < TILE; group += GROUP) { /* many groups have none */
            uint64_t any;
            memcpy(&any, is_inside + group, GROUP);
            for (size_t i = group; any && i < group + GROUP; i++) {
                inside[found] = keys[i]; /* without a branch, which would be guessed wrong */
                found += is_inside[i];
            }
        }
        for (size_t i = 0; i < found; i++)
            if (!count_key(slots, inside[i])) others[rest++] = inside[i];
    }
    *above = higher;
    return rest;
}

/* PCG64DXSM, which numpy has too (O'Neill, "PCG: a family of simple fast space-efficient
   statistically good algorithms for random number generation", 2014). */
typedef unsigned __int128 State;
static const uint64_t MULTIPLIER = 0xda942042e4dd58b5;

typedef struct {
    uint64_t state[2];
    uint64_t increment[2];
} Generator;

INLINE State join(const uint64_t words[2]) { return (State)words[1] << 64 | words[0]; }

/* Skips numbers, doubling the step: so many times as their count has bits. */
static void advance(Generator *generator, uint64_t numbers) {
    State state = join(generator->state), increment = join(generator->increment);
    State multiplier = MULTIPLIER;
    for (; numbers; numbers /= 2) {
        if (numbers & 1) state = state * multiplier + increment;
        increment *= multiplier + 1;
        multiplier *= multiplier;
    }
    generator->state[0] = (uint64_t)state, generator->state[1] = (uint64_t)(state >> 64);
}

/* Returns the number of a state. */
INLINE uint64_t number_of(State state) {
    uint64_t low = (uint64_t)state | 1, high = (uint64_t)(state >> 64);
    high ^= high >> 32;
    high *= MULTIPLIER;
    high ^= high >> 48;
    return high * low;
}

/* Fills a tile with 16-bit numbers, four of each 64-bit one, without the first `skip`; moves the
   generator on by a tile. Every other state goes its own way, so that neither waits for the other;
   inlined, they would share the registers with a merge.
   numbers: room for 8 more than a tile. */
static __attribute__((noinline)) void draw(Generator *generator, size_t skip, size_t count,
                                           uint16_t *restrict numbers) {
    State increment = join(generator->increment);
    State by_two = (State)MULTIPLIER * MULTIPLIER, then = increment * ((State)MULTIPLIER + 1);
    State even = join(generator->state), odd = even * MULTIPLIER + increment;
    for (size_t i = 0; i < skip + count; i += 8) {
        uint64_t first = number_of(even), second = number_of(odd);
        memcpy(numbers + i, &first, sizeof first);
        memcpy(numbers + i + 4, &second, sizeof second);
        even = even * by_two + then;
        odd = odd * by_two + then;
        if (i + 8 == TILE)
            generator->state[0] = (uint64_t)even, generator->state[1] = (uint64_t)(even >> 64);
    }
}

typedef struct {
    Tensor tensor;
    double weight;
    double scale;
    double limit;
    int64_t below; /* of 2^16: the chance that an element stays; all of them for 2^16 */
    Generator generator;
} Voter;

/* Fills a tile with the task vector of a voter, without what is smaller than the limit or has too
   high a number, and scaled; adds its vote.
   numbers: NULL for a voter all of whose elements stay. */
INLINE void add_vote(int kind, const void *data, size_t count, const Voter *voter,
                     const uint16_t *restrict numbers, int by_count, const double *restrict base,
                     double *restrict delta, double *restrict votes) {
    double limit = voter->limit, scale = voter->scale;
    int32_t below = (int32_t)voter->below;
    for (size_t i = 0; i < count; i++) {
        double change = element(kind, data, i) - base[i];
        change = fabs(change) < limit ? 0 : change;
        if (numbers) change *= numbers[i] < below;
        delta[i] = change *= scale;
        votes[i] += by_count ? (change > 0) - (change < 0) : change;
    }
}

/* The same for any voter and any way to vote, each with a loop of its own. */
INLINE void vote(Voter *voter, const double *restrict base, size_t first, size_t count,
                 size_t skip, int by_count, double *restrict delta, double *restrict votes) {
    uint16_t drawn[TILE + 8], *numbers = drawn + skip;
    Tensor tensor = voter->tensor;
    if (voter->below < 1 << 16) {
        draw(&voter->generator, skip, count, drawn);
        if (by_count)
            BY_KIND(add_vote, tensor, first, count, voter, numbers, 1, base, delta, votes);
        else
            BY_KIND(add_vote, tensor, first, count, voter, numbers, 0, base, delta, votes);
    } else if (by_count)
        BY_KIND(add_vote, tensor, first, count, voter, NULL, 1, base, delta, votes);
    else
        BY_KIND(add_vote, tensor, first, count, voter, NULL, 0, base, delta, votes);
}

/* Numbers that stay in registers through a loop over the models. */
enum { LANES = 8 };
typedef double Lanes __attribute__((vector_size(8 * LANES)));
typedef int64_t Bits __attribute__((vector_size(8 * LANES)));

INLINE Lanes lanes(const double *from) {
    Lanes values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE Lanes where(Bits mask, Lanes values) { return (Lanes)(mask & (Bits)values); }

/* Adds to a tile the sum of what has the sign of its votes; see `merge_elected`.
   All arrays have room for whole tiles. */
INLINE void add_agreeing(const Voter *voters, size_t models, const double *restrict deltas,
                         const double *restrict votes, double scaling, int normalize, size_t count,
                         double *restrict tile) {
    for (size_t i = 0; i < count; i += LANES) {
        Bits flipped = ~(lanes(votes + i) >= 0) & INT64_MIN;
        Lanes sum = {0}, divisor = {0};
        for (size_t k = 0; k < models; k++) {
            Lanes delta = (Lanes)((Bits)lanes(deltas + k * TILE + i) ^ flipped);
            sum += where(~(delta < 0), delta);
            if (normalize) divisor += where(delta > 0, voters[k].weight - (Lanes){0});
        }
        if (normalize) sum /= divisor + where(divisor == 0, 1 - (Lanes){0});
        Lanes result = lanes(tile + i) + (Lanes)((Bits)(sum * scaling) ^ flipped);
        memcpy(tile + i, &result, sizeof result);
    }
}

/* Merges what agrees on a sign: base + scaling * sum(d[k] * m[k]), where d[k] is the task vector of
   a voter and m[k] is 1 where it has the sign that is elected; divided by sum(weight[k] * m[k]), if
   that is asked for and not zero. Returns whether all results are finite.

   position: of the first element in its tensor; random numbers depend on it.
   by_count: each voter has one vote, instead of as much as its element is large.
   deltas: room for a tile of each. */
EXPORT int merge_elected(Voter *voters, size_t models, Tensor base, uint64_t position,
                         double scaling, int by_count, int normalize, double *restrict deltas,
                         Tensor out, size_t count) {
    double tile[TILE], votes[TILE];
    int finite = 1;
    for (size_t k = 0; k < models; k++) advance(&voters[k].generator, position / 4);
    for (size_t first = 0; first < count; first += TILE) {
        size_t length = count - first < TILE ? count - first : TILE;
        memset(votes, 0, sizeof votes);
        BY_KIND(load, base, first, length, tile);
        for (size_t k = 0; k < models; k++)
            vote(voters + k, tile, first, length, position % 4, by_count, deltas + k * TILE, votes);
        if (normalize)
            add_agreeing(voters, models, deltas, votes, scaling, 1, length, tile);
        else
            add_agreeing(voters, models, deltas, votes, scaling, 0, length, tile);
        finite &= store(tile, out, first, length);
    }
    return finite;
}
