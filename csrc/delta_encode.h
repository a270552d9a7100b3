/*
** delta_encode.h - the encoder's state, shared by delta_encode.c, delta_place.c and
** delta_balance.c. Pure.
*/
#ifndef NL_DELTA_ENCODE_H
#define NL_DELTA_ENCODE_H

#include "delta.h"
#include "delta_tokens.h"

#define ENCODE_MENDED 24        /* bytes of spans that do not make the next guess worth while */
#define ENCODE_SORTED 64        /* edits told in the order of time; more go in the order of keys */
#define ENCODE_NEW UINT32_MAX   /* a cell from nowhere */

typedef struct encode_record {
    uint8_t *bytes;
    size_t size, room;      /* size > room: it did not fit */
} encode_record;

/* Where each cell of the new page comes from. */
typedef struct encode_source {
    uint32_t page;          /* index in the set, or ENCODE_NEW */
    uint32_t cell;
} encode_source;

/* A cell known by the hash of its bytes. */
typedef struct encode_known {
    uint64_t hash;
    encode_source source;   /* page == ENCODE_NEW: free entry */
} encode_known;

typedef struct encode_edit {
    uint32_t old, new;      /* cell deleted, cell inserted; ENCODE_NEW: none */
    uint32_t before;        /* cells of the base before this place */
    uint32_t rank;          /* in the order of keys */
    uint32_t time;          /* guessed order of events */
} encode_edit;

typedef struct delta_encoder {
    delta_set set;
    const uint8_t *const *images;
    uint8_t *image1;            /* page 1, plain */
    uint8_t wipe;               /* DELTA_WIPE: this database's deletes leave zeros, it seems */
    uint8_t *guess, *spare;     /* page_size each */
    encode_record best, trial;
    size_t edit;                /* where the latest edit of `trial` begins; 0: none yet */
    encode_source *sources;     /* of the new page's cells */
    encode_edit *edits;         /* 2 for each cell that fits into a page */
    nl_cell *cells;             /* of the new page, to be laid out */
    uint8_t *kept;              /* of the base's cells: they stay */
    uint16_t *at_pointer;       /* page_size: base cell + 1 at this offset, else 0 */
    encode_known *known;        /* cells of all bases; NULL until needed */
    int known_shift;            /* of a hash, to an index into it */
    delta_tokens tokens;
} delta_encoder;

/* One page under way. */
typedef struct encode_page {
    uint32_t index;             /* in the set */
    uint32_t head;
    uint32_t start;             /* whose base it starts from, mostly its own */
    const uint8_t *base;        /* that base; NULL: there is none */
    const uint8_t *image;
    uint8_t bits;               /* of the record, DELTA_CELLS aside */
    uint32_t commits;           /* with DELTA_COMMITS */
    nl_btree old, now;          /* b-trees of base and image */
    int is_old, is_now;         /* 1 if these are valid */
} encode_page;

/* Records and guesses (delta_encode.c). */
void encode_varint(encode_record *r, uint32_t x);
void encode_bytes(encode_record *r, const uint8_t *p, size_t n);
/* Begin a record: what comes before the edits; `guess` becomes what the reader has then. */
void encode_begin(delta_encoder *e, const encode_page *p, uint8_t bits, nl_btree *b);
/* End it: mend, and keep it if it is the shortest. Answers 1 if no other guess is worth while.
** */
int encode_end(delta_encoder *e, const encode_page *p);
int encode_plain(delta_encoder *e, const encode_page *p, uint8_t bits);
/* Edits, written and carried out on `guess`; 0: impossible. */
void encode_edit_head(delta_encoder *e, uint32_t kind, uint32_t i);
int encode_insert(delta_encoder *e, const encode_page *p, nl_btree *b, uint32_t i, uint32_t which);
int encode_delete(delta_encoder *e, nl_btree *b, uint32_t i, uint32_t n, int wide, int wipe);

/* Guesses (1), (6) (delta_place.c) and (2) to (5) (delta_balance.c). */
int encode_guess_small(delta_encoder *e, const encode_page *p);
void encode_guess_balance(delta_encoder *e, const encode_page *p);

#endif
