// From the ring's bytes to typed events, in the kernel's order and with its names.

import { LEAF_NAMES, type LeafName, STATUS_NAMES, type TdxStatus } from './tdx.ts';

/** What an spte is. The booleans are all false unless it is a leaf. */
export interface SpteMeaning {
  readonly class: 'nonpresent' | 'mmio' | 'frozen' | 'table' | 'leaf';
  readonly writable: boolean;
  readonly executable: boolean;
  readonly accessed: boolean;
  readonly dirty: boolean;
  readonly hostWritable: boolean;
  readonly mmuWritable: boolean;
  /** On a direct root: backed by guest_memfd. Every leaf of a mirror root is private. */
  readonly private: boolean;
  readonly mmioGeneration?: number;
}

/** A run of `count` entries of `level` that all changed from `old` to `new`: gfn, gfn + pages(level), … */
export interface SpteChanged {
  readonly name: 'spte_changed';
  readonly asId: number;
  readonly root: 'direct' | 'mirror';
  readonly gfn: number;
  readonly level: number;
  readonly old: SpteMeaning;
  readonly new: SpteMeaning;
  readonly count: number;
  /** Installed by a vCPU's fault, rather than changed by an operation. */
  readonly byVcpu: boolean;
}

/** `struct kvm_gfn_range` as a handler is given it; all selectors are shown, whichever the filter form reads. */
export interface GfnRangeCall {
  readonly name: 'unmap_gfn_range' | 'age_gfn' | 'test_age_gfn' | 'set_spte_gfn';
  readonly slot: number;
  readonly asId: number;
  readonly start: number;
  readonly end: number;
  readonly arg: number;
  readonly attrFilter: number;
  readonly mayBlock: boolean;
  readonly onlyPrivate: boolean;
  readonly onlyShared: boolean;
}

type Named<N extends string, F> = { readonly name: N } & Readonly<F>;
type AttributeCall = { slot: number; asId: number; start: number; end: number; arg: number; mayBlock: boolean };

export type TraceEvent =
  | SpteChanged
  | GfnRangeCall
  | Named<'unmap_gfn_range_ret' | 'age_gfn_ret' | 'test_age_gfn_ret' | 'set_spte_gfn_ret', { ret: boolean }>
  | Named<'pre_attr' | 'post_attr', AttributeCall>
  | Named<'kvm_unmap_hva_range' | 'kvm_age_hva' | 'kvm_test_age_hva', { start: bigint; end: bigint }>
  | Named<'inv_begin', { inProgress: number; seq: number }>
  | Named<'inv_add', { start: number; end: number }>
  | Named<'inv_end', { seq: number; inProgress: number; start: number; end: number }>
  | Named<
      'flush' | 'zap_all' | 'inv_roots' | 'zap_inv_roots' | 'zap_all_fast' | 'flush_shadow_all' | 'reclaimed',
      unknown
    >
  | Named<'flush_range', { gfn: number; npages: number }>
  | Named<'req', { nr: number }>
  | Named<'zap_leafs', { start: number; end: number; canYield: boolean; flush: boolean }>
  | Named<'zap_leafs_ret', { ret: boolean }>
  | Named<'zap_root', { shared: boolean; level: number }>
  | Named<'zap_sp', { level: number; gfn: number }>
  | Named<'split_huge', { slot: number; start: number; end: number; target: number; shared: boolean }>
  | Named<'split_huge_page' | 'write_protect_gfn', { gfn: number; level: number }>
  | Named<'wrprot_slot', { slot: number; level: number }>
  | Named<'clear_dirty_mask', { slot: number; gfn: number; mask: bigint }>
  | Named<'zap_collapsible', { slot: number }>
  | Named<'set_memslot' | 'commit_region', { change: number }>
  | Named<'swap_memslots', { asId: number }>
  | Named<'flush_shadow_memslot', { slot: number; gfn: number; npages: number }>
  | Named<'mmio_gen', { generation: number }>
  | Named<'gmem_inval_begin', { start: number; end: number | bigint }>
  | Named<'mark_mmio_spte', { gfn: number }>
  /** `count` calls of `leaf` that ended alike, on entries of `level` from `gfn` on. */
  | Named<'seamcall', { leaf: LeafName; status: TdxStatus; gfn: number; level: number; count: number }>
  /**
   * `count` leaves removed from the S-EPT, the first at `gfn`, straight after the mirror's own changes: each by BLOCK, TRACK
   * and kick (if the TD is runnable; once for all if `batched`), REMOVE and WBINVD.
   */
  | Named<'sept_removed', { gfn: number; level: number; count: number; tracked: boolean; batched: boolean }>
  /** All vCPUs were asked out of the guest; `inside` got an IPI. */
  | Named<'kick', { inside: number }>
  | Named<
      'rmp_make_private' | 'rmp_make_shared' | 'psmash',
      { page: number; gfn: number; level: number; count: number }
    >
  | Named<'kvm_rmp_fault', { vcpu: number; gfn: number; page: number; level: number }>
  | Named<'map_gpa_range_exit', { vcpu: number; gfn: number; npages: number; private: boolean; pageSize: '4K' | '2M' }>;

const CLASSES = ['nonpresent', 'mmio', 'frozen', 'table', 'leaf'] as const;
const meanings = new Map<number, SpteMeaning>();

/** The meaning of a 16-bit code of assembly/trace.ts; the same object for the same code. */
export function spteMeaning(code: number, mirror: boolean): SpteMeaning {
  const key = code | (mirror ? 0x10000 : 0);
  let meaning = meanings.get(key);
  if (meaning === undefined) {
    const leaf = (code & 7) === 4;
    const bit = (at: number) => leaf && ((code >> at) & 1) === 1;
    meaning = Object.freeze({
      class: CLASSES[code & 7] ?? 'nonpresent',
      writable: bit(3),
      executable: leaf && !bit(8),
      accessed: bit(4),
      dirty: bit(5),
      hostWritable: bit(6),
      mmuWritable: bit(7),
      private: mirror ? leaf : bit(9),
      ...((code & 7) === 1 ? { mmioGeneration: code >> 3 } : {}),
    });
    meanings.set(key, meaning);
  }
  return meaning;
}

/** The meaning of a leaf's eight flags (assembly/spte.ts). */
export function leafMeaning(flags: number, mirror: boolean): SpteMeaning {
  return spteMeaning(4 | ((flags >> 1) << 3), mirror);
}

const RANGE_CALLS = ['unmap_gfn_range', 'age_gfn', 'test_age_gfn', 'set_spte_gfn'] as const;
const HVA_EVENTS = ['kvm_unmap_hva_range', 'kvm_age_hva', 'kvm_test_age_hva'] as const;

/** An event of `type`: `small` 16 bits, `word` 32, quads of 64. */
type Decode = (
  small: number,
  word: number,
  quad: (index: number) => number,
  raw: (index: number) => bigint,
) => TraceEvent;
const plain =
  (name: string): Decode =>
  () =>
    ({ name }) as TraceEvent;
const DECODERS = new Map<number, Decode>([
  ...RANGE_CALLS.map((name, index): [number, Decode] => [
    10 + index,
    (small, slot, quad) => ({
      name,
      slot,
      asId: small >> 5,
      start: quad(0),
      end: quad(1),
      arg: quad(2),
      attrFilter: small & 3,
      mayBlock: (small & 4) !== 0,
      onlyPrivate: (small & 8) !== 0,
      onlyShared: (small & 16) !== 0,
    }),
  ]),
  [
    14,
    (small, call) => ({ name: `${RANGE_CALLS[call - 10] ?? 'unmap_gfn_range'}_ret`, ret: small !== 0 }) as TraceEvent,
  ],
  ...(['pre_attr', 'post_attr'] as const).map((name, index): [number, Decode] => [
    15 + index,
    (small, slot, quad) => ({
      name,
      slot,
      asId: small >> 5,
      start: quad(0),
      end: quad(1),
      arg: quad(2),
      mayBlock: (small & 4) !== 0,
    }),
  ]),
  ...HVA_EVENTS.map((name, index): [number, Decode] => [
    20 + index,
    (_small, _word, _quad, raw) => ({ name, start: raw(0), end: raw(1) }),
  ]),
  [23, (_small, word, quad) => ({ name: 'inv_begin', inProgress: word, seq: quad(0) })],
  [24, (_small, _word, quad) => ({ name: 'inv_add', start: quad(0), end: quad(1) })],
  [25, (_small, word, quad) => ({ name: 'inv_end', seq: quad(0), inProgress: word, start: quad(1), end: quad(2) })],
  [26, plain('flush')],
  [27, (_small, _word, quad) => ({ name: 'flush_range', gfn: quad(0), npages: quad(1) })],
  [28, (_small, word) => ({ name: 'req', nr: word })],
  [
    29,
    (small, _word, quad) => ({
      name: 'zap_leafs',
      start: quad(0),
      end: quad(1),
      canYield: (small & 1) !== 0,
      flush: (small & 2) !== 0,
    }),
  ],
  [30, (small) => ({ name: 'zap_leafs_ret', ret: small !== 0 })],
  [31, (small, word) => ({ name: 'zap_root', shared: small !== 0, level: word })],
  [32, plain('zap_all')],
  [33, plain('inv_roots')],
  [34, plain('zap_inv_roots')],
  [35, plain('zap_all_fast')],
  [
    36,
    (small, slot, quad) => ({
      name: 'split_huge',
      slot,
      start: quad(0),
      end: quad(1),
      target: small & 255,
      shared: small >> 8 !== 0,
    }),
  ],
  [37, (_small, word, quad) => ({ name: 'split_huge_page', gfn: quad(0), level: word })],
  [38, (small, word) => ({ name: 'wrprot_slot', slot: word, level: small })],
  [39, (_small, word, quad, raw) => ({ name: 'clear_dirty_mask', slot: word, gfn: quad(0), mask: raw(1) })],
  [40, (_small, word, quad) => ({ name: 'write_protect_gfn', gfn: quad(0), level: word })],
  [41, (_small, word) => ({ name: 'zap_collapsible', slot: word })],
  [42, (_small, word) => ({ name: 'set_memslot', change: word })],
  [43, (_small, word) => ({ name: 'swap_memslots', asId: word })],
  [44, (_small, word, quad) => ({ name: 'flush_shadow_memslot', slot: word, gfn: quad(0), npages: quad(1) })],
  [45, (_small, word) => ({ name: 'commit_region', change: word })],
  [46, (_small, _word, quad) => ({ name: 'mmio_gen', generation: quad(0) })],
  [
    47,
    (_small, _word, quad, raw) => ({
      name: 'gmem_inval_begin',
      start: quad(0),
      // A release covers every page index: 2^64 - 1 is no double.
      end: quad(1) > Number.MAX_SAFE_INTEGER ? raw(1) : quad(1),
    }),
  ],
  [48, plain('flush_shadow_all')],
  [49, plain('reclaimed')],
  [50, (_small, _word, quad) => ({ name: 'mark_mmio_spte', gfn: quad(0) })],
  [51, (_small, word, quad) => ({ name: 'zap_sp', level: word, gfn: quad(0) })],
  [
    60,
    (small, word, quad) => ({
      name: 'seamcall',
      leaf: LEAF_NAMES[small & 63],
      status: STATUS_NAMES[(small >> 6) & 63],
      gfn: quad(0),
      level: small >> 12,
      count: word,
    }),
  ],
  [
    61,
    (small, word, quad) => ({
      name: 'sept_removed',
      gfn: quad(0),
      level: small >> 12,
      count: word,
      tracked: (small & 1) !== 0,
      batched: (small & 2) !== 0,
    }),
  ],
  [62, (_small, word) => ({ name: 'kick', inside: word })],
  ...(['rmp_make_private', 'rmp_make_shared', 'psmash'] as const).map((name, index): [number, Decode] => [
    80 + index,
    (small, _word, quad) => ({ name, page: quad(1), gfn: quad(0), level: small, count: quad(2) }),
  ]),
  [83, (small, vcpu, quad) => ({ name: 'kvm_rmp_fault', vcpu, gfn: quad(0), page: quad(1), level: small })],
  [
    84,
    (small, vcpu, quad) => ({
      name: 'map_gpa_range_exit',
      vcpu,
      gfn: quad(0),
      npages: quad(1),
      private: (small & 1) !== 0,
      pageSize: (small & 2) !== 0 ? '2M' : '4K',
    }),
  ],
]);

const RECORD_WORDS = 4;
const EV_SPTE = 1;

/** Decodes `records` records from `words`. */
export function decodeTrace(words: Uint32Array, records: number): TraceEvent[] {
  const events: TraceEvent[] = [];
  const bytes = new DataView(words.buffer, words.byteOffset, words.byteLength);
  for (let record = 0; record < records; record++) {
    const at = record * RECORD_WORDS;
    const head = words[at];
    if ((head & 255) === EV_SPTE) {
      const mirror = ((head >> 13) & 1) === 1;
      const next = words[at + 1];
      events.push({
        name: 'spte_changed',
        asId: (head >> 12) & 1,
        root: mirror ? 'mirror' : 'direct',
        gfn: words[at + 2] + (next >>> 16) * 4294967296,
        level: (head >> 8) & 15,
        old: spteMeaning(head >>> 16, mirror),
        new: spteMeaning(next & 0xffff, mirror),
        count: words[at + 3],
        byVcpu: ((head >> 14) & 1) === 1,
      });
      continue;
    }
    const raw = (index: number) => bytes.getBigUint64((at + 2 + index * 2) * 4, true);
    const quad = (index: number) => Number(raw(index));
    const decode = DECODERS.get(head & 255);
    if (decode === undefined) throw new Error(`record ${record} of the trace has no known type: ${head & 255}`);
    events.push(decode(head >>> 16, words[at + 1], quad, raw));
    record += (head >> 8) & 255;
  }
  return events;
}
