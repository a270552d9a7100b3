/*
** bytes.h - big-endian integers in byte strings.
**
** Everything nearlite writes to disk or to the network is big-endian, as SQLite's own file format
** is. memcpy is how C reads unaligned bytes without undefined behaviour; every compiler turns these
** into one load and one byte swap.
*/
#ifndef NL_BYTES_H
#define NL_BYTES_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define NL_HOST_BIG 1 /* this machine's words are big-endian */
#else
#define NL_HOST_BIG 0
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NL_SWAP32(x) __builtin_bswap32(x)
#define NL_SWAP64(x) __builtin_bswap64(x)
#else
#define NL_SWAP32(x) (x)
#define NL_SWAP64(x) (x)
#endif

static inline uint32_t nl_get32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return NL_SWAP32(x);
}

static inline uint64_t nl_get64(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return NL_SWAP64(x);
}

static inline void nl_put32(uint8_t *p, uint32_t x)
{
    x = NL_SWAP32(x);
    memcpy(p, &x, sizeof x);
}

static inline void nl_put64(uint8_t *p, uint64_t x)
{
    x = NL_SWAP64(x);
    memcpy(p, &x, sizeof x);
}

#endif
