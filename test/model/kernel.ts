// What the parts of the model have in common: the public API's types, the kernel's constants, and a fault on its way.

import type { Slot } from './memslot.ts';
import type { Entry, Leaf, Root, Table } from './page-tables.ts';
import type { ModelVcpu } from './vcpu.ts';

export type VmType = 'default' | 'sw-protected' | 'tdx' | 'snp';
export type KernelProfile = 'rfc-v4' | 'linux-6.12' | 'linux-6.16';
export type FilterForm = 'none' | 'rfc-v4' | 'gmem-v13' | 'tdx-v18' | 'attr-filter';
export type U64 = number | bigint;

export interface ModelOptions {
  type?: VmType;
  kernel?: KernelProfile;
  filterForm?: FilterForm;
  vcpus?: number;
  maxphyaddr?: number;
  gpaw?: 48 | 52;
  quirks?: { slotZapAll?: boolean };
  nxHugePages?: boolean;
  eagerPageSplit?: boolean;
  mmioCaching?: boolean;
  hugepageGuard?: boolean;
  septVeDisable?: boolean;
}

/** struct kvm_gfn_range, as the public API spells it. */
export interface GfnRange {
  slot: number;
  asId?: number;
  start: number;
  end: number;
  arg?: { attributes?: number; pte?: { writable?: boolean } };
  mayBlock?: boolean;
  onlyPrivate?: boolean;
  onlyShared?: boolean;
  attrFilter?: number;
}
export type Range = { slot: Slot; start: number; end: number } & Required<
  Pick<GfnRange, 'mayBlock' | 'onlyPrivate' | 'onlyShared' | 'attrFilter'>
> & { attributes: number };

export interface SpteMeaning {
  class: 'nonpresent' | 'mmio' | 'frozen' | 'table' | 'leaf';
  writable: boolean;
  executable: boolean;
  accessed: boolean;
  dirty: boolean;
  hostWritable: boolean;
  mmuWritable: boolean;
  private: boolean;
  pending: boolean;
  mmioGeneration?: number;
}
export type ModelEvent = { name: string } & Record<string, unknown>;
export type FaultResult = 'fixed' | 'spurious' | 'retry' | 'emulate' | 'memory_fault' | 'error' | 'frozen';
export type AccessKind = 'read' | 'write' | 'exec';

export class ModelError extends Error {
  readonly code: string;
  readonly left: { gpa: bigint; size: bigint } | undefined;

  constructor(code: string, left?: { gpa: bigint; size: bigint }) {
    super(code);
    this.code = code;
    this.left = left;
  }
}

export interface Fault {
  vcpu: ModelVcpu;
  gfn: number;
  kind: AccessKind;
  private: boolean;
  prefetch: boolean;
  slot: Slot | null;
  seq: number;
  maxLevel: number;
  reqLevel: number;
  goalLevel: number;
  hugePageDisallowed: boolean;
  pfn: number;
  mapWritable: boolean;
  errno: string;
  root: Root | null;
  /** Set when the fault ended before it needed mmu_lock. */
  early: FaultResult | null;
  /** The mirror leaf between FROZEN and its final value. */
  frozen: { table: Table; index: number; gfn: number; level: number; old: Entry; entry: Leaf } | null;
}

export const PRIVATE_ATTRIBUTE = 8;
export const SHARED = 1;
export const PRIVATE = 2;
export const MAX_SLOTS = 32764;
export const MAX_SLOT_PAGES = 2 ** 31 - 1;
export const U64_MAX = (1n << 64n) - 1n;
export const USER_END = 0x7ffffffff000n;
export const TLB_FLUSH = 768;
export const FREE_OBSOLETE_ROOTS = 807;
export const INV_NONE = -1;

export const big = (value: U64): bigint => BigInt(value);
export const isPageAligned = (value: bigint): boolean => value % 4096n === 0n;
export const toGfn = (value: bigint): number => Number(value >> 12n);

const NONE = {
  writable: false,
  executable: false,
  accessed: false,
  dirty: false,
  hostWritable: false,
  mmuWritable: false,
  private: false,
  pending: false,
};
const leafMeanings = new Map<number, SpteMeaning>();
const MEANINGS: Readonly<Record<'empty' | 'frozen' | 'table', SpteMeaning>> = {
  empty: { class: 'nonpresent', ...NONE },
  frozen: { class: 'frozen', ...NONE },
  table: { class: 'table', ...NONE },
};

/** What an entry means, without its pfn; the same object for entries that mean the same. */
export function meaning(entry: Entry): SpteMeaning {
  if (entry.kind === 'mmio') return { class: 'mmio', ...NONE, mmioGeneration: entry.generation };
  if (entry.kind !== 'leaf') return MEANINGS[entry.kind];
  const { kind, pfn, ...bits } = entry;
  const { writable, executable, accessed, dirty, hostWritable, mmuWritable, pending } = bits;
  const key = [writable, executable, accessed, dirty, hostWritable, mmuWritable, bits.private, pending].reduce(
    (sum, bit) => sum * 2 + (bit ? 1 : 0),
    0,
  );
  let found = leafMeanings.get(key);
  if (!found) {
    found = { class: 'leaf', ...bits };
    leafMeanings.set(key, found);
  }
  return found;
}
