// The control block: every scalar of a VM that outlives a call, and its counters. At CONTROL_BASE (layout.ts).
//
// The address is a compile-time constant, the contents are all in linear memory: a copy of memory is the VM.

import { CONTROL_BASE, MEMSLOT_BYTES, RING_BASE } from './layout';

// Control, 1,024 bytes of fields; the counters follow at COUNTERS_BASE.
@unmanaged
export class Control {
  magic: u32;
  layoutVersion: u32;
  memoryBytes: u64;
  // The arena and its free blocks (blocks.ts).
  ringRecords: u32;
  arenaBase: u32;
  arenaBlocks: u32;
  arenaNext: u32;
  stackBase0: u32;
  stackBase1: u32;
  stackBase2: u32;
  stackCount0: u32;
  stackCount1: u32;
  stackCount2: u32;
  /** For tests: how many reservations from now the one comes that is refused; 0 = none. */
  failReservation: u32;
  /** What a paused operation reserved: upper tables, and blocks of leaf tables. */
  heldBlocks: u32;
  heldUppers: u64;
  // What the VM is; fixed by vmCreate().
  slotsPagesMax: u64;
  vmType: u32;
  profile: u32;
  filterForm: u32;
  rootLevel: u32;
  asCount: u32;
  directBitsLevel: u32;
  maxphyaddr: u32;
  gpaw: u32;
  hugepageGuard: u32;
  septVeDisable: u32;
  /** An SNP guest's accesses meet the gpa and the validated bit of the RMP. */
  rmpChecks: u32;
  /** Form gmem-in-place: a conversion invalidates what the new attributes leave behind, not what the range holds. */
  gmemFilterByTarget: u32;
  vcpuCount: u32;
  // Policies of a TD (TdOptions of src/tdx.ts says what each does).
  privateHugePages: u32;
  zapPolicy: u32;
  trackBatched: u32;
  zeroStepLocalRetry: u32;
  /** CPU packages of the host, whose caches are written back one by one. */
  packages: u32;
  // Capabilities, quirks and module parameters.
  quirkSlotZapAll: u32;
  manualDirtyLog: u32;
  nxHugePages: u32;
  eagerPageSplit: u32;
  mmioCaching: u32;
  // State.
  dead: u32;
  destroyed: u32;
  paused: u32;
  lockHeld: u32;
  frozenFaults: u32;
  memslotHighWater: u32;
  slotCount0: u32;
  slotCount1: u32;
  rootHighWater: u32;
  rootSequence: u32;
  faultHighWater: u32;
  gmemHighWater: u32;
  vmaCount: u32;
  anonVmaNext: u32;
  sideCount: u32;
  openGmems: u32;
  gmemSerial: u32;
  notifierActive: u32;
  invInProgress: i32;
  invalidWalk: u32;
  /** A zapped translation of a valid root awaits its flush. */
  flushOwed: u32;
  staleRecords: u32;
  flushEpoch: u32;
  mmioGen0: u32;
  mmioGen1: u32;
  zapAllGen: u32;
  pad1: u32;
  /** Slots that share a page of host memory, at most, of all there ever were. */
  hvaAliases: u32;
  /** The newest root, index + 1; 0 = none (tdp_mmu.ts). */
  rootNewest: u32;
  /** vCPUs that have a record of page-state changes, at most. */
  pscHighWater: u32;
  pad0: u32;
  slotsPages: u64;
  directBits: u64;
  invSeq: u64;
  invStart: u64;
  invEnd: u64;
  // The range operation under way.
  budget: f64;
  yieldGfn: f64;
  yieldArmed: u32;
  stopMask: u32;
  pausePoint: u32;
  operation: u32;
  pauseGfn: f64;
  requestStart: u64;
  requestEnd: u64;
  /** Leaves that the walk under way changed, over all its pieces. */
  walkHits: u64;
  // Results that do not fit a return value.
  result0: f64;
  result1: f64;
  result2: f64;
  result3: f64;
  // The trace ring.
  traceOn: u32;
  traceCount: u32;
  traceDropped: u64;
  // Value trees (page_table.ts): 16-byte entries.
  attributesLo: u64;
  attributesHi: u64;
  hostLo: u64;
  hostHi: u64;
  staleLo: u64;
  staleHi: u64;
  // The TD's module (tdx_module.ts), and what KVM keeps of it (tdx.ts).
  septLo: u64;
  septHi: u64;
  /** Regions of 2M that the guest accepted in 4K pages: never mapped huge again. */
  inhibitLo: u64;
  inhibitHi: u64;
  tdEpoch: u64;
  /** vCPUs inside that entered in an even epoch, and in an odd one. */
  epochReaders0: u32;
  epochReaders1: u32;
  tdState: u32;
  /** The tree lock: bit 31 held exclusively, else how many share it. */
  septLock: u32;
  acceptsBegun: u32;
  /** Leaves blocked, and tables blocked, each with a side record. */
  septBlocked: u32;
  septTablesBlocked: u32;
  /** Calls of the module that shall fail: which, how, after how many, how often. */
  injectLeaf: u32;
  injectStatus: u32;
  injectSkip: u32;
  injectTimes: u32;
  /** vCPUs may not enter while a zap is tried again. */
  waitForSeptZap: u32;
  /** Mirror leaves whose page is not yet added. */
  premapped: u64;
  /** A zap was given up because a huge leaf could not be split; the operation under way ends with -EIO. */
  splitFailed: u32;
  // The range under way, as losses.ts judges what it takes.
  producer: u32;
  lossCount: u32;
  lossDropped: u32;
  lossArg: u32;
  lossSelector: u32;
  lossStart: u64;
  lossEnd: u64;
  exitHypercall: u32;
  /** The mirror and the S-EPT may disagree: a call went past KVM, or failed. Zaps go leaf by leaf of the mirror then. */
  septDiverged: u32;
  /** Epoch, plus 1, of what is blocked without a side record: as many leaves as one TRACK is for. */
  septBatchEpoch: u64;
  /** Beside attributesLo (attributes.ts). */
  attributes2mLo: u64;
  attributes2mHi: u64;
  // Where the walks of the last access ended, in the guest's tree and in the host's: 24 bytes each (page_table.ts, Path).
  guestPathTree: u32;
  guestPathEntry: u32;
  guestPathKey: u64;
  guestPathLevel: i32;
  pad2: u32;
  hostPathTree: u32;
  hostPathEntry: u32;
  hostPathKey: u64;
  hostPathLevel: i32;
  pad3: u32;
}
if (offsetof<Control>() > 1024) ERROR('Control outgrew its 1,024 bytes');

export const ctl: Control = changetype<Control>(CONTROL_BASE);

export const ATTRIBUTES_TREE: usize = CONTROL_BASE + offsetof<Control>('attributesLo');
export const ATTRIBUTES_2M_TREE: usize = CONTROL_BASE + offsetof<Control>('attributes2mLo');
export const HOST_TREE: usize = CONTROL_BASE + offsetof<Control>('hostLo');
export const GUEST_PATH: usize = CONTROL_BASE + offsetof<Control>('guestPathTree');
export const HOST_PATH: usize = CONTROL_BASE + offsetof<Control>('hostPathTree');
export const SEPT_TREE: usize = CONTROL_BASE + offsetof<Control>('septLo');
export const INHIBIT_TREE: usize = CONTROL_BASE + offsetof<Control>('inhibitLo');
export const STALE_TREE: usize = CONTROL_BASE + offsetof<Control>('staleLo');

/** Counters, one u64 each; the order is the order of COUNTER_NAMES in src/engine/exports.ts. */
export const COUNTERS_BASE: usize = CONTROL_BASE + 1024;
export const COUNTER_COUNT: i32 = 160;
/** How often each leaf function of the TDX module ended in each status: 18 by 16, one u64 each (tdx_module.ts). */
export const SEAMCALL_STATUS_BASE: usize = COUNTERS_BASE + <usize>COUNTER_COUNT * 8;

// KVM's own statistics. Leaf counts are current values.
export const C_PAGES_4K: i32 = 0;
export const C_PAGES_2M: i32 = 1;
export const C_PAGES_1G: i32 = 2;
export const C_NX_LPAGE_SPLITS: i32 = 3;
export const C_REMOTE_TLB_FLUSH: i32 = 4;
export const C_REMOTE_TLB_FLUSH_REQUESTS: i32 = 5;
export const C_PF_TAKEN: i32 = 6;
export const C_PF_FIXED: i32 = 7;
export const C_PF_EMULATE: i32 = 8;
export const C_PF_SPURIOUS: i32 = 9;
export const C_PF_FAST: i32 = 10;
export const C_PF_MMIO_SPTE_CREATED: i32 = 11;
export const C_TLB_FLUSH: i32 = 12;
// Ours.
export const C_ZAPPED_DIRECT_4K: i32 = 13;
export const C_ZAPPED_MIRROR_4K: i32 = 16;
export const C_GFNS_ZAPPED: i32 = 19;
export const C_GFNS_ZAPPED_OUTSIDE: i32 = 20;
export const C_TABLES: i32 = 21;
export const C_TABLES_ALLOCATED: i32 = 22;
export const C_TABLES_FREED: i32 = 23;
export const C_VISITED_L1: i32 = 24;
export const C_VISITED_L5: i32 = 28;
export const C_YIELDS: i32 = 29;
export const C_LEAFS_AGED: i32 = 30;
export const C_LEAFS_WRITE_PROTECTED: i32 = 31;
export const C_SPLITS: i32 = 32;
export const C_RETRIES_HULL: i32 = 33;
export const C_RETRIES_SEQ: i32 = 34;
export const C_RETRIES_FROZEN: i32 = 35;
export const C_RETRIES_SLOT_INVALID: i32 = 36;
export const C_LOCK_SECTIONS: i32 = 37;
export const C_INVALIDATIONS: i32 = 38;
export const C_FREE_OBSOLETE_ROOTS: i32 = 39;
export const C_ATTRIBUTE_XARRAY_OPS: i32 = 40;
export const C_SEPT_ADD: i32 = 41;
export const C_PAGE_AUG: i32 = 42;
export const C_RANGE_BLOCK: i32 = 43;
export const C_TRACK: i32 = 44;
export const C_KICKS: i32 = 45;
export const C_PAGE_REMOVE: i32 = 46;
export const C_PAGE_WBINVD: i32 = 47;
export const C_PRIVATE_PAGES_LOST: i32 = 48;
export const C_PRIVATE_PAGES_TO_ACCEPT: i32 = 49;
export const C_GMEM_PAGES_ALLOCATED: i32 = 50;
export const C_GMEM_PAGES_FREED: i32 = 51;
export const C_PAGES_ACCEPTED: i32 = 52;
export const C_PAGE_RECLAIM: i32 = 53;
export const C_NOTIFIER_EVENTS: i32 = 54;
export const C_PAGE_ADD: i32 = 55;
export const C_PAGE_DEMOTE: i32 = 56;
export const C_PAGE_PROMOTE: i32 = 57;
export const C_ACCEPT_CALLS: i32 = 58;
// These seven in the order of tdx_module.ts.
export const C_MR_EXTEND: i32 = 59;
export const C_MR_FINALIZE: i32 = 60;
export const C_VP_ENTER: i32 = 61;
export const C_VP_FLUSH: i32 = 62;
export const C_VPFLUSHDONE: i32 = 63;
export const C_CACHE_WB: i32 = 64;
export const C_KEY_FREEID: i32 = 65;
export const C_SEAMCALL_ERRORS: i32 = 66;
export const C_TD_TLB_FLUSHES: i32 = 67;
export const C_KICK_IPIS: i32 = 68;
export const C_PAGES_CLEARED: i32 = 69;
export const C_RETRIES_BUSY: i32 = 70;
export const C_ZERO_STEP_CHECKS: i32 = 71;
export const C_EXITS_HYPERCALL: i32 = 72;
export const C_PAGES_LEAKED: i32 = 73;
export const C_RMP_PRIVATE_4K: i32 = 74;
export const C_RMP_PRIVATE_2M: i32 = 75;
export const C_RMP_SHARED_4K: i32 = 76;
export const C_RMP_SHARED_2M: i32 = 77;
export const C_PSMASH: i32 = 78;
export const C_CACHE_FLUSHES: i32 = 79;
export const C_RMP_FAULTS_IGNORED: i32 = 80;
export const C_RMP_FAULTS_SPURIOUS: i32 = 81;
export const C_RMP_FAULTS_PSMASH: i32 = 82;
export const C_PAGES_VALIDATED: i32 = 83;
export const C_GMEM_HOST_PAGES_UNMAPPED: i32 = 84;

/** Adds to a counter. */
export function count(counter: i32, by: u64): void {
  const ptr = COUNTERS_BASE + ((<usize>counter) << 3);
  store<u64>(ptr, load<u64>(ptr) + by);
}

export function counter(index: i32): u64 {
  return load<u64>(COUNTERS_BASE + ((<usize>index) << 3));
}

// VM types; the numbers are KVM's (uapi kvm.h), the vendor column of the spec's 1.7.
export const VM_DEFAULT: u32 = 0;
export const VM_SW_PROTECTED: u32 = 1;
export const VM_SNP: u32 = 4;
export const VM_TDX: u32 = 5;

export const PROFILE_RFC_V4: u32 = 0;
export const PROFILE_6_12: u32 = 1;
export const PROFILE_6_16: u32 = 2;

export const FORM_NONE: u32 = 0;
export const FORM_RFC_V4: u32 = 1;
export const FORM_GMEM_V13: u32 = 2;
export const FORM_TDX_V18: u32 = 3;
export const FORM_ATTR_FILTER: u32 = 4;
export const FORM_GMEM_IN_PLACE: u32 = 5;

/** What a zap does to a private huge leaf that reaches beyond the range. */
export const ZAP_WHOLE_LEAF: u32 = 0;
/** Every huge leaf that the range meets is split first. */
export const ZAP_SPLIT_FIRST: u32 = 1;
/** Only the leaves that the range's ends fall inside are. */
export const ZAP_SPLIT_BOUNDARY: u32 = 2;

/** Mirrors: kvm_arch_has_private_mem() */
export function hasPrivateMem(): bool {
  return ctl.vmType != VM_DEFAULT;
}

/** TDX only. Mirrors: kvm_has_mirrored_tdp() */
export function hasMirroredTdp(): bool {
  return ctl.vmType == VM_TDX;
}

// Where TypeScript finds what it reads or sets.
export const CONTROL_AT_TRACE_COUNT: usize = CONTROL_BASE + offsetof<Control>('traceCount');
export const CONTROL_AT_TRACE_DROPPED: usize = CONTROL_BASE + offsetof<Control>('traceDropped');
export const CONTROL_AT_PAUSED: usize = CONTROL_BASE + offsetof<Control>('paused');
export const CONTROL_AT_PAUSE_GFN: usize = CONTROL_BASE + offsetof<Control>('pauseGfn');
export const CONTROL_AT_BUDGET: usize = CONTROL_BASE + offsetof<Control>('budget');
export const CONTROL_AT_STOP_MASK: usize = CONTROL_BASE + offsetof<Control>('stopMask');
export const CONTROL_AT_OPERATION: usize = CONTROL_BASE + offsetof<Control>('operation');
export const CONTROL_AT_YIELD_GFN: usize = CONTROL_BASE + offsetof<Control>('yieldGfn');
export const CONTROL_AT_YIELD_ARMED: usize = CONTROL_BASE + offsetof<Control>('yieldArmed');
export const CONTROL_AT_RESULT0: usize = CONTROL_BASE + offsetof<Control>('result0');
export const CONTROL_AT_INV_IN_PROGRESS: usize = CONTROL_BASE + offsetof<Control>('invInProgress');
export const CONTROL_AT_INV_SEQ: usize = CONTROL_BASE + offsetof<Control>('invSeq');
export const CONTROL_AT_INV_START: usize = CONTROL_BASE + offsetof<Control>('invStart');
export const CONTROL_AT_INV_END: usize = CONTROL_BASE + offsetof<Control>('invEnd');
export const CONTROL_AT_DEAD: usize = CONTROL_BASE + offsetof<Control>('dead');
export const CONTROL_AT_DESTROYED: usize = CONTROL_BASE + offsetof<Control>('destroyed');
export const CONTROL_AT_ROOT_HIGH_WATER: usize = CONTROL_BASE + offsetof<Control>('rootHighWater');
export const CONTROL_AT_GMEM_HIGH_WATER: usize = CONTROL_BASE + offsetof<Control>('gmemHighWater');
export const CONTROL_AT_DIRECT_BITS: usize = CONTROL_BASE + offsetof<Control>('directBits');
export const CONTROL_AT_LOSS_COUNT: usize = CONTROL_BASE + offsetof<Control>('lossCount');
export const CONTROL_AT_TD_EPOCH: usize = CONTROL_BASE + offsetof<Control>('tdEpoch');
export const CONTROL_AT_TD_STATE: usize = CONTROL_BASE + offsetof<Control>('tdState');
/** What createVm() fixed: a snapshot of a VM that differs here is another VM's. */
export const CONTROL_AT_FIXED: usize = CONTROL_BASE + offsetof<Control>('slotsPagesMax');
export const CONTROL_FIXED_BYTES: usize = offsetof<Control>('quirkSlotZapAll') - offsetof<Control>('slotsPagesMax');

/** One more for each change of what is stored that moves no record: how blocks, entries and planes are to be read. */
export const LAYOUT_VERSION: u32 = 4;
/** Differs where records, regions or the version do: a snapshot with another one is refused. */
export const LAYOUT_HASH: u32 =
  ((((<u32>offsetof<Control>() * 31 + <u32>COUNTER_COUNT) * 31 + <u32>RING_BASE) * 31 + <u32>MEMSLOT_BYTES) * 31 +
    <u32>CONTROL_BASE) *
    31 +
  LAYOUT_VERSION;
