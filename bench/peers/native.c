// Layout A in native C: the kernel's own page tables, 512 entries of 8 bytes, and what is done to them, in two ways.
//
// tdp_iter: one step per entry, as arch/x86/kvm/mmu/tdp_iter.c walks: down, else sideways, else up.
// nested: plain nested loops, as a good C programmer would write them. Empty entries of a table are passed over with all
// below them, whole tables take a loop without branches that the compiler turns into vector code, and sptes are written
// with plain stores.
//
// Both work on the same tables and count the same things. Tables stay when their leaves go, as tdp_mmu_zap_leafs()
// keeps them; only "free" takes them down, as a root that is gone. Driven by bench/peers/native.ts: one command a line on stdin, one line of answers on stdout, times taken
// here. The pattern of pages is a hash of gfn and seed, the same in every contender (bench/workloads.ts).

#define _GNU_SOURCE
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ENTRIES 512
// Bits of an spte, where Intel's EPT has them.
#define SPTE_READABLE (1ull << 0)
#define SPTE_WRITABLE (1ull << 1)
#define SPTE_EXECUTABLE (1ull << 2)
#define SPTE_HUGE (1ull << 7)
#define SPTE_ACCESSED (1ull << 8)
#define SPTE_DIRTY (1ull << 9)
#define SPTE_PRESENT (1ull << 11)
#define SPTE_PFN_MASK 0x000ffffffffff000ull

typedef uint64_t u64;
typedef uint32_t u32;

static u64 pages;
static u32 root_level;
static u64 *root;
static char *arena;
static u64 arena_used, arena_size;
// Where the tables end that map the guest before anything is split.
static u64 arena_linked;

static u64 now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (u64)at.tv_sec * 1000000000ull + (u64)at.tv_nsec;
}

// Where the system has none to give, the tables stand in small pages: slower, not wrong.
static void want_huge_pages(void *memory, u64 bytes) {
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

static u64 *alloc_table(void) {
  u64 *table = (u64 *)(arena + arena_used);
  arena_used += 4096;
  if (arena_used > arena_size) {
    fprintf(stderr, "native: out of tables\n");
    exit(1);
  }
  return table;
}

static u64 leaf_of(u64 gfn, u32 density, u32 seed);

static inline u64 *table_of(u64 spte) { return (u64 *)(arena + (spte & SPTE_PFN_MASK)); }
static inline u64 table_spte(u64 *table) {
  return (u64)((char *)table - arena) | SPTE_READABLE | SPTE_WRITABLE | SPTE_EXECUTABLE | SPTE_PRESENT;
}
static inline int is_leaf(u64 spte, int level) { return level == 1 || (spte & SPTE_HUGE); }
static inline u64 pages_of(int level) { return 1ull << (9 * (level - 1)); }
static inline u32 index_of(u64 gfn, int level) { return (gfn >> (9 * (level - 1))) & 511; }

// --- What the walks count ------------------------------------------------------------------------------------------

// Of a leaf that is zapped A and D too: handle_changed_spte() looks at both, and the prototypes behind the goals did.
struct counts {
  u64 leafs, accessed, dirty;
};

static inline void count_leaf(struct counts *counts, u64 spte) {
  counts->leafs += (spte >> 11) & 1;
  counts->accessed += (spte >> 8) & 1;
  counts->dirty += (spte >> 9) & 1;
}

// --- tdp_iter ------------------------------------------------------------------------------------------------------

struct tdp_iter {
  u64 *pt_path[6];
  u64 *sptep;
  u64 old_spte;
  u64 gfn, next_last_level_gfn;
  int level, root_level, min_level;
  int valid;
};

static inline void iter_reset_sptep(struct tdp_iter *iter) {
  iter->sptep = iter->pt_path[iter->level] + index_of(iter->gfn, iter->level);
  iter->old_spte = *(volatile u64 *)iter->sptep;
}
static void iter_start(struct tdp_iter *iter, u64 start) {
  iter->root_level = (int)root_level;
  iter->min_level = 1;
  iter->next_last_level_gfn = start;
  iter->pt_path[root_level] = root;
  iter->level = (int)root_level;
  iter->gfn = start & ~(pages_of(iter->level) - 1);
  iter->valid = 1;
  iter_reset_sptep(iter);
}
static inline int try_step_down(struct tdp_iter *iter) {
  if (iter->level == iter->min_level) return 0;
  iter->old_spte = *(volatile u64 *)iter->sptep;
  if (!(iter->old_spte & SPTE_PRESENT) || is_leaf(iter->old_spte, iter->level)) return 0;
  u64 *child = table_of(iter->old_spte);
  iter->level--;
  iter->pt_path[iter->level] = child;
  iter->gfn = iter->next_last_level_gfn & ~(pages_of(iter->level) - 1);
  iter_reset_sptep(iter);
  return 1;
}
static inline int try_step_side(struct tdp_iter *iter) {
  if (index_of(iter->gfn, iter->level) == ENTRIES - 1) return 0;
  iter->gfn += pages_of(iter->level);
  iter->next_last_level_gfn = iter->gfn;
  iter->sptep++;
  iter->old_spte = *(volatile u64 *)iter->sptep;
  return 1;
}
static inline int try_step_up(struct tdp_iter *iter) {
  if (iter->level == iter->root_level) return 0;
  iter->level++;
  iter->gfn &= ~(pages_of(iter->level) - 1);
  iter_reset_sptep(iter);
  return 1;
}
static inline void iter_next(struct tdp_iter *iter) {
  if (try_step_down(iter)) return;
  do {
    if (try_step_side(iter)) return;
  } while (try_step_up(iter));
  iter->valid = 0;
}

static __attribute__((noinline)) struct counts iter_zap(u64 start, u64 end) {
  struct counts counts = {0, 0, 0};
  struct tdp_iter iter;
  for (iter_start(&iter, start); iter.valid && iter.gfn < end; iter_next(&iter)) {
    if (!(iter.old_spte & SPTE_PRESENT) || !is_leaf(iter.old_spte, iter.level)) continue;
    count_leaf(&counts, iter.old_spte);
    *iter.sptep = 0;
  }
  return counts;
}
// Takes `bit` from the leaves that have it.
static inline __attribute__((always_inline)) struct counts iter_clear(u64 start, u64 end, u64 bit) {
  struct counts counts = {0, 0, 0};
  struct tdp_iter iter;
  for (iter_start(&iter, start); iter.valid && iter.gfn < end; iter_next(&iter)) {
    if (!(iter.old_spte & bit) || !is_leaf(iter.old_spte, iter.level)) continue;
    counts.leafs++;
    *iter.sptep = iter.old_spte & ~bit;
  }
  return counts;
}
static __attribute__((noinline)) struct counts iter_age(u64 start, u64 end) {
  return iter_clear(start, end, SPTE_ACCESSED);
}
static __attribute__((noinline)) struct counts iter_write_protect(u64 start, u64 end) {
  return iter_clear(start, end, SPTE_WRITABLE);
}
// A fault for each page, as kvm_tdp_mmu_map() walks.
static __attribute__((noinline)) struct counts iter_map(u64 start, u64 end) {
  struct counts counts = {0, 0, 0};
  for (u64 gfn = start; gfn < end; gfn++) {
    struct tdp_iter iter;
    for (iter_start(&iter, gfn); iter.valid && iter.gfn <= gfn; iter_next(&iter)) {
      if (iter.level != 1) continue;
      if (!(iter.old_spte & SPTE_PRESENT)) {
        *iter.sptep = leaf_of(gfn, 0, 0);
        counts.leafs++;
      }
      break;
    }
  }
  return counts;
}

// Writes the 512 entries that a leaf of 2M becomes.
static u64 *split_table(u64 spte) {
  u64 *restrict table = alloc_table();
  for (u64 at = 0; at < ENTRIES; at++) table[at] = (spte & ~SPTE_HUGE) + (at << 12);
  return table;
}
static __attribute__((noinline)) void iter_split(u64 start, u64 end) {
  struct tdp_iter iter;
  for (iter_start(&iter, start), iter.min_level = 2; iter.valid && iter.gfn < end; iter_next(&iter)) {
    if (!(iter.old_spte & SPTE_PRESENT) || !(iter.old_spte & SPTE_HUGE)) continue;
    *iter.sptep = table_spte(split_table(iter.old_spte));
  }
}

// Tables that nothing maps with any more, each with the next one's address in its first entry.
static u64 *free_tables;

static inline void free_table(u64 *table) {
  table[0] = (u64)free_tables;
  free_tables = table;
}
// Entry by entry, as handle_removed_pt() takes a table down.
static void iter_free(u64 *table, int level, struct counts *counts) {
  for (u32 at = 0; at < ENTRIES; at++) {
    u64 spte = *(volatile u64 *)(table + at);
    *(volatile u64 *)(table + at) = 0;
    if (!(spte & SPTE_PRESENT)) continue;
    if (is_leaf(spte, level)) count_leaf(counts, spte);
    else iter_free(table_of(spte), level - 1, counts);
  }
  if (level != (int)root_level) free_table(table);
}

// --- nested --------------------------------------------------------------------------------------------------------

// A full table: no branch in the loop, so that it runs at the speed of memory.
static inline void zap_table(u64 *restrict table, u32 from, u32 to, struct counts *counts) {
  u64 leafs = 0, accessed = 0, dirty = 0;
  for (u32 at = from; at < to; at++) {
    u64 spte = table[at];
    leafs += (spte >> 11) & 1;
    accessed += (spte >> 8) & 1;
    dirty += (spte >> 9) & 1;
    table[at] = 0;
  }
  counts->leafs += leafs;
  counts->accessed += accessed;
  counts->dirty += dirty;
}
// Of a table that goes: nobody reads it again.
static inline void count_table(u64 *restrict table, struct counts *counts) {
  u64 leafs = 0;
  for (u32 at = 0; at < ENTRIES; at++) leafs += (table[at] >> 11) & 1;
  counts->leafs += leafs;
}
static inline void clear_table(u64 *restrict table, u32 from, u32 to, u64 bit, struct counts *counts) {
  u64 leafs = 0;
  for (u32 at = from; at < to; at++) {
    u64 spte = table[at];
    leafs += (spte & bit) != 0;
    table[at] = spte & ~bit;
  }
  counts->leafs += leafs;
}
static inline void map_table(u64 *restrict table, u64 gfn, u32 from, u32 to, struct counts *counts) {
  u64 leafs = 0;
  for (u32 at = from; at < to; at++) {
    u64 spte = table[at];
    int absent = !(spte & SPTE_PRESENT);
    leafs += absent;
    table[at] = absent ? leaf_of(gfn + at - from, 0, 0) : spte;
  }
  counts->leafs += leafs;
}

// What is done to page tables. The order is bench/peers/contender.ts's.
enum op { OP_ZAP, OP_AGE, OP_WRITE_PROTECT, OP_MAP, OP_SPLIT, OP_FREE };

static inline __attribute__((always_inline)) void do_table(u64 *table, u64 gfn, u32 from, u32 to, enum op op,
                                                           struct counts *counts) {
  if (op == OP_AGE) clear_table(table, from, to, SPTE_ACCESSED, counts);
  else if (op == OP_WRITE_PROTECT || op == OP_SPLIT) clear_table(table, from, to, SPTE_WRITABLE, counts);
  else if (op == OP_MAP) map_table(table, gfn, from, to, counts);
  else if (op == OP_FREE) count_table(table, counts);
  else zap_table(table, from, to, counts);
}

static void nested(u64 *table, int level, u64 start, u64 end, enum op op, struct counts *counts) {
  u32 from = index_of(start, level);
  u32 to = index_of(end - 1, level) + 1;
  if (level == 1) {
    if (from == 0 && to == ENTRIES) do_table(table, start, 0, ENTRIES, op, counts);
    else do_table(table, start, from, to, op, counts);
    return;
  }
  u64 size = pages_of(level);
  u64 at = start;
  for (u32 index = from; index < to; index++) {
    u64 next = (at & ~(size - 1)) + size;
    if (next > end) next = end;
    u64 spte = table[index];
    if (spte & SPTE_PRESENT) {
      if (spte & SPTE_HUGE) {
        if (op == OP_SPLIT) {
          // Split and write-protected at once.
          counts->leafs += spte & SPTE_WRITABLE ? ENTRIES : 0;
          table[index] = table_spte(split_table(spte & ~SPTE_WRITABLE));
        } else if (op == OP_AGE || op == OP_WRITE_PROTECT) {
          u64 bit = op == OP_AGE ? SPTE_ACCESSED : SPTE_WRITABLE;
          counts->leafs += (spte & bit) != 0;
          table[index] = spte & ~bit;
        } else if (op != OP_MAP) {
          count_leaf(counts, spte);
          table[index] = 0;
        }
      } else {
        nested(table_of(spte), level - 1, at, next, op, counts);
        if (op == OP_FREE) {
          table[index] = 0;
          free_table(table_of(spte));
        }
      }
    }
    at = next;
  }
}

// --- Building ------------------------------------------------------------------------------------------------------

// The hash of bench/workloads.ts.
static inline u32 hash(u32 gfn, u32 seed) {
  u32 x = gfn * 0x9e3779b1u + seed;
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

#define DENSITY_FULL 0
#define DENSITY_HALF 1
#define DENSITY_FRAGMENTED 2
// Every second page: what breaks every run (trace).
#define DENSITY_ALTERNATE 3

static u64 leaf_of(u64 gfn, u32 density, u32 seed) {
  u64 spte = (gfn << 12) & SPTE_PFN_MASK;
  spte |= SPTE_PRESENT | SPTE_READABLE | SPTE_WRITABLE | SPTE_EXECUTABLE | SPTE_DIRTY;
  if (density == DENSITY_FULL) return spte | SPTE_ACCESSED;
  if (density == DENSITY_ALTERNATE) return gfn & 1 ? 0 : spte | SPTE_ACCESSED;
  u32 bits = hash((u32)gfn, seed);
  if (density == DENSITY_HALF && !(bits & 1)) return 0;
  // Fragmented: of each 16 pages a run is missing.
  if (density == DENSITY_FRAGMENTED && (hash((u32)(gfn >> 4), seed) & 3) == 0) return 0;
  return bits & 2 ? spte | SPTE_ACCESSED : spte;
}

static int leaf_level;
// LEAVES_MIXED: the lower half of the guest in 2M leaves, the upper in 4K.
#define LEAVES_MIXED 3
static inline int leaf_level_at(u64 gfn) { return leaf_level == LEAVES_MIXED ? (gfn < pages / 2 ? 2 : 1) : leaf_level; }

static void link_tables(void) {
  arena_used = 0;
  free_tables = NULL;
  root = alloc_table();
  memset(root, 0, 4096);
  for (u64 gfn = 0; gfn < pages; gfn += pages_of(leaf_level_at(gfn) + 1)) {
    u64 *table = root;
    for (int level = (int)root_level; level > leaf_level_at(gfn); level--) {
      u64 *sptep = table + index_of(gfn, level);
      if (*sptep == 0) {
        *sptep = table_spte(alloc_table());
        memset(table_of(*sptep), 0, 4096);
      }
      table = table_of(*sptep);
    }
  }
  arena_linked = arena_used;
}
static void build(u64 npages, int leaves) {
  if (arena != NULL) munmap(arena, arena_size);
  pages = npages;
  leaf_level = leaves;
  root_level = npages > (1ull << 36) ? 5 : 4;
  // Room for the tables of leaves that are split, too: what is not touched takes no memory.
  u64 tables = 8;
  for (int level = 1; level <= (int)root_level; level++) tables += npages / pages_of(level + 1) + 2;
  arena_size = tables * 4096;
  arena = mmap(NULL, arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) {
    printf("error mmap\n");
    exit(1);
  }
  want_huge_pages(arena, arena_size);
  link_tables();
}
static void fill(u32 density, u32 seed) {
  if (free_tables != NULL) link_tables();
  arena_used = arena_linked;
  for (u64 gfn = 0; gfn < pages;) {
    u64 *table = root;
    int lowest = leaf_level_at(gfn);
    for (int level = (int)root_level; level > lowest; level--) table = table_of(table[index_of(gfn, level)]);
    for (u32 at = 0; at < ENTRIES && gfn < pages; at++, gfn += pages_of(lowest)) {
      u64 spte = leaf_of(gfn >> (9 * (lowest - 1)), density, seed);
      table[at] = spte != 0 && lowest > 1 ? spte | SPTE_HUGE : spte;
    }
  }
}

// What a walk for gfn ends at: bit 0 present, 1 accessed, 2 dirty, 3 not writable.
static inline u32 look(u64 gfn) {
  u64 *table = root;
  for (int level = (int)root_level;; level--) {
    u64 spte = table[index_of(gfn, level)];
    if (!(spte & SPTE_PRESENT)) return 0;
    if (is_leaf(spte, level)) {
      return 1 | ((spte >> 8) & 1) << 1 | ((spte >> 9) & 1) << 2 | (spte & SPTE_WRITABLE ? 0 : 8);
    }
    table = table_of(spte);
  }
}

// --- Commands ------------------------------------------------------------------------------------------------------

static u32 *gfns;
static u32 gfn_count;
static volatile u64 sink;

#define WALK_ITER 0
#define WALK_NESTED 1

static inline struct counts walk(u32 kind, enum op op, u64 start, u64 end) {
  struct counts counts = {0, 0, 0};
  if (kind == WALK_ITER) {
    // What is split is logged from then on: two walks, as kvm_mmu_slot_apply_flags() has them.
    if (op == OP_SPLIT) iter_split(start, end);
    if (op == OP_ZAP) return iter_zap(start, end);
    if (op == OP_AGE) return iter_age(start, end);
    if (op == OP_WRITE_PROTECT || op == OP_SPLIT) return iter_write_protect(start, end);
    if (op == OP_MAP) return iter_map(start, end);
    iter_free(root, (int)root_level, &counts);
    return counts;
  }
  nested(root, (int)root_level, start, end, op, &counts);
  return counts;
}

// Records of 16 bytes, as assembly/trace.ts has them: one for each leaf that is zapped.
#define RING_RECORDS (1u << 20)
static u32 *ring;
static u32 ring_records;

// Writes a record at `record`: what the leaf was (W, A, D, and W again for host and MMU), where, that it is gone. Returns
// where the next one goes.
static inline u32 *put(u32 *record, u64 spte, int level, u64 gfn) {
  u32 writable = (spte >> 1) & 1;
  u32 code = 4 | writable << 3 | (u32)((spte >> 8) & 3) << 4 | writable << 6 | writable << 7;
  record[0] = 1 | (u32)level << 8 | code << 16;
  record[1] = (u32)(gfn >> 32) << 16;
  record[2] = (u32)gfn;
  record[3] = 1;
  return record + 4;
}
static __attribute__((noinline)) void iter_trace(u64 start, u64 end) {
  struct tdp_iter iter;
  u32 *record = ring;
  for (iter_start(&iter, start); iter.valid && iter.gfn < end; iter_next(&iter)) {
    if (!(iter.old_spte & SPTE_PRESENT) || !is_leaf(iter.old_spte, iter.level)) continue;
    record = put(record, iter.old_spte, iter.level, iter.gfn);
    *iter.sptep = 0;
  }
  ring_records = (u32)((record - ring) / 4);
}
static void nested_trace(u64 *table, int level, u64 start, u64 end) {
  u32 at = index_of(start, level);
  u32 to = index_of(end - 1, level) + 1;
  if (level == 1) {
    u32 *record = ring + 4 * ring_records;
    for (u64 gfn = start; at < to; at++, gfn++) {
      u64 spte = table[at];
      if (!(spte & SPTE_PRESENT)) continue;
      record = put(record, spte, 1, gfn);
      table[at] = 0;
    }
    ring_records = (u32)((record - ring) / 4);
    return;
  }
  u64 size = pages_of(level);
  for (u64 gfn = start, next; at < to; at++, gfn = next) {
    u64 spte = table[at];
    next = (gfn & ~(size - 1)) + size;
    if (!(spte & SPTE_PRESENT)) continue;
    if (spte & SPTE_HUGE) {
      ring_records = (u32)((put(ring + 4 * ring_records, spte, level, gfn) - ring) / 4);
      table[at] = 0;
    } else {
      nested_trace(table_of(spte), level - 1, gfn, next < end ? next : end);
    }
  }
}

// Sums what the seeded gfns show, each weighed by its place: equal sums mean equal sptes.
static u64 look_all(void) {
  u64 sum = 0;
  for (u32 at = 0; at < gfn_count; at++) sum += (u64)look(gfns[at]) * (at + 1);
  return sum;
}

int main(void) {
  char line[256];
  setvbuf(stdout, NULL, _IONBF, 0);
  gfns = malloc(sizeof(u32) * (1u << 22));
  ring = malloc(RING_RECORDS * 16);
  while (fgets(line, sizeof line, stdin) != NULL) {
    u64 a = 0, b = 0, c = 0;
    char name[32];
    if (sscanf(line, "%31s %" SCNu64 " %" SCNu64 " %" SCNu64, name, &a, &b, &c) < 1) continue;
    if (strcmp(name, "build") == 0) {
      build(a, (int)b);
      printf("ok\n");
    } else if (strcmp(name, "fill") == 0) {
      fill((u32)a, (u32)b);
      printf("ok %" PRIu64 "\n", arena_used);
    } else if (strcmp(name, "gfns") == 0) {
      // `a` u32 gfns follow in binary.
      if (a > (1u << 22) || fread(gfns, 4, a, stdin) != a) return 1;
      gfn_count = (u32)a;
      printf("ok\n");
    } else if (strcmp(name, "whole") == 0) {
      // whole KIND OP: one walk of the guest, then the seeded sptes are read, all timed.
      u64 start = now();
      struct counts counts = walk((u32)a, (enum op)b, 0, pages);
      u64 looked = look_all();
      u64 time = now() - start;
      sink += looked;
      printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", time, counts.leafs, counts.accessed,
             counts.dirty, looked);
    } else if (strcmp(name, "ranges") == 0) {
      // ranges KIND OP NPAGES: one walk of NPAGES (a power of two) from each seeded gfn, one spte of the range read after
      // it, all timed.
      struct counts total = {0, 0, 0};
      u64 looked = 0;
      u64 start = now();
      for (u32 at = 0; at < gfn_count; at++) {
        struct counts counts = walk((u32)a, (enum op)b, gfns[at], gfns[at] + c);
        total.leafs += counts.leafs;
        total.accessed += counts.accessed;
        total.dirty += counts.dirty;
        looked += look(gfns[at] + (at & (c - 1)));
      }
      u64 time = now() - start;
      sink += looked;
      printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", time, total.leafs, total.accessed,
             total.dirty, looked);
    } else if (strcmp(name, "calls") == 0) {
      // calls KIND NPAGES: the pages from each seeded gfn on, zapped one by one, then mapped one by one; a time for each.
      u64 leafs = 0, zap_time = 0, map_time = 0;
      for (u32 at = 0; at < gfn_count; at++) {
        u64 start = now();
        for (u64 gfn = gfns[at]; gfn < gfns[at] + b; gfn++) leafs += walk((u32)a, OP_ZAP, gfn, gfn + 1).leafs;
        u64 middle = now();
        for (u64 gfn = gfns[at]; gfn < gfns[at] + b; gfn++) leafs += walk((u32)a, OP_MAP, gfn, gfn + 1).leafs;
        zap_time += middle - start;
        map_time += now() - middle;
      }
      printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", zap_time, map_time, leafs);
    } else if (strcmp(name, "trace") == 0) {
      // trace KIND NPAGES: the guest is zapped in pieces of NPAGES, each piece's records are read before the next.
      if (b > RING_RECORDS) return 1;
      u32 sum = 0;
      u64 changes = 0;
      u64 start = now();
      for (u64 gfn = 0; gfn < pages; gfn += b) {
        ring_records = 0;
        if (a == WALK_ITER) iter_trace(gfn, gfn + b);
        else nested_trace(root, (int)root_level, gfn, gfn + b);
        for (u32 at = 0; at < ring_records; at++) {
          u32 *record = ring + 4 * at;
          if ((record[0] & 255) != 1) continue;
          sum += record[2] + (record[1] >> 16) + (record[0] >> 16);
          changes += record[3];
        }
      }
      u64 time = now() - start;
      printf("%" PRIu64 " %" PRIu64 " %u\n", time, changes, sum);
    } else if (strcmp(name, "look") == 0) {
      printf("%" PRIu64 "\n", look_all());
    } else if (strcmp(name, "bandwidth") == 0) {
      // Read-modify-write of `a` bytes, five times after one to warm up: a time each.
      u64 words = a / 8;
      u64 *memory = mmap(NULL, a, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) return 1;
      want_huge_pages(memory, a);
      memset(memory, 1, a);
      for (int round = 0; round < 6; round++) {
        u64 start = now();
        for (u64 at = 0; at < words; at++) memory[at] += 1;
        u64 time = now() - start;
        sink += memory[words / 2];
        if (round > 0) printf(round > 1 ? " %" PRIu64 : "%" PRIu64, time);
      }
      munmap(memory, a);
      printf("\n");
    } else if (strcmp(name, "quit") == 0) {
      break;
    } else {
      printf("error %s\n", name);
    }
  }
  return 0;
}
