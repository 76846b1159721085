// The typed ABI: the functions that the engine exports, as assembly/index.ts lists them, and the names of what it numbers.
// The constants in that list and the functions' names are in layout.ts, which the build writes.

type Call = (...args: number[]) => number;

export interface EngineExports {
  vmCreate: Call;
  vmSetOption: Call;
  vmFlushRemoteTlbs: Call;
  gate: Call;
  abiSetMemoryRegion: Call;
  abiSetMemoryAttributes: Call;
  abiGmemCreate: Call;
  abiGmemFallocate: Call;
  abiGmemHostAccess: Call;
  abiGmemPin: Call;
  abiGmemSetAttributes: Call;
  abiGmemMemoryError: Call;
  abiGmemRelease: Call;
  abiGetDirtyLogCheck: Call;
  abiDirtyRuns: Call;
  abiGetDirtyLogProtect: Call;
  abiClearDirtyLog: Call;
  abiEnableCap: Call;
  abiWriteNxHugePages: Call;
  abiRecoverNxHugePages: Call;
  abiGfnRange: Call;
  abiGfnRanges: Call;
  vmCheckGfnRanges: Call;
  abiZapGfnRange: Call;
  vcpuRun: Call;
  vcpuSetInGuest: Call;
  vcpuFinishFault: Call;
  vcpuDropFault: Call;
  abiSetAddressSpace: Call;
  abiAccess: Call;
  abiPreFaultMemory: Call;
  abiAccept: Call;
  abiMapGpa: Call;
  abiInitMemRegion: Call;
  abiSeamcall: Call;
  abiSeamcallStatus: Call;
  abiInjectStatus: Call;
  abiSeptEntry: Call;
  countHypercallExit: Call;
  tdxFinalize: Call;
  tdxTerminateVm: Call;
  vcpuBeginAccept: Call;
  vcpuFinishAccept: Call;
  vcpuBeginEnter: Call;
  vcpuFinishEnter: Call;
  abiBeginFault: Call;
  abiPvalidate: Call;
  abiRmpFault: Call;
  pscBegin: Call;
  pscBeginMsr: Call;
  pscComplete: Call;
  abiHostMmap: Call;
  abiHostMunmap: Call;
  abiHostMprotect: Call;
  abiHostMadvise: Call;
  abiHostMremap: Call;
  abiHostAccess: Call;
  abiHostMigrate: Call;
  abiHostKhugepaged: Call;
  abiHostKsmMerge: Call;
  abiHostPageIdleSet: Call;
  abiHostClearRefs: Call;
  abiHostChangePte: Call;
  abiHostFailHugePage: Call;
  abiInvalidateRangeStart: Call;
  abiInvalidateRangeEnd: Call;
  abiNotifierAge: Call;
  abiNotifierTestAge: Call;
  abiDestroy: Call;
  snapshotRegion: Call;
  abiRetryGfn: Call;
  abiRetryGfnUnsafe: Call;
  abiRetry: Call;
  abiIsMixed: Call;
  abiIsPrivate: Call;
  abiCounter: Call;
  inspectLeafs: Call;
  inspectRmp: Call;
  inspectSept: Call;
  inspectWalk: Call;
  inspectSpte: Call;
  inspectSptes: Call;
  vmCheck: Call;
  staleSharedLeafs: Call;
}

/** What the build that can pause has beside (Binaryen's asyncify). */
export interface PausableExports extends EngineExports {
  asyncify_start_unwind(data: number): void;
  asyncify_stop_unwind(): void;
  asyncify_start_rewind(data: number): void;
  asyncify_stop_rewind(): void;
  asyncify_get_state(): number;
}

/**
 * Calls that can pause: a paused one is resumed by calling it again. The place in this list is kept in the VM's memory,
 * so that a restored VM knows what it was doing.
 */
export const PAUSING_CALLS = [
  'abiSetMemoryRegion',
  'abiSetMemoryAttributes',
  'abiGmemFallocate',
  'abiGmemMemoryError',
  'abiGmemRelease',
  'abiGetDirtyLogProtect',
  'abiClearDirtyLog',
  'abiWriteNxHugePages',
  'abiRecoverNxHugePages',
  'abiGfnRange',
  'abiZapGfnRange',
  'abiAccess',
  'abiPreFaultMemory',
  'abiAccept',
  'abiBeginFault',
  'vcpuFinishFault',
  'abiHostMmap',
  'abiHostMunmap',
  'abiHostMprotect',
  'abiHostMadvise',
  'abiHostMremap',
  'abiHostAccess',
  'abiHostMigrate',
  'abiHostKhugepaged',
  'abiHostKsmMerge',
  'abiHostPageIdleSet',
  'abiHostClearRefs',
  'abiHostChangePte',
  'abiInvalidateRangeStart',
  'abiNotifierAge',
  'abiDestroy',
  'abiPvalidate',
  'abiRmpFault',
  'abiGmemSetAttributes',
] as const;
export type PausingCall = (typeof PAUSING_CALLS)[number];

/** Counters in the engine's order (assembly/control.ts, C_*). KVM's own names where it has one. */
export const COUNTER_NAMES = [
  'pages_4k',
  'pages_2m',
  'pages_1g',
  'nx_lpage_splits',
  'remote_tlb_flush',
  'remote_tlb_flush_requests',
  'pf_taken',
  'pf_fixed',
  'pf_emulate',
  'pf_spurious',
  'pf_fast',
  'pf_mmio_spte_created',
  'tlb_flush',
  'leafs_zapped_direct_4k',
  'leafs_zapped_direct_2m',
  'leafs_zapped_direct_1g',
  'leafs_zapped_mirror_4k',
  'leafs_zapped_mirror_2m',
  'leafs_zapped_mirror_1g',
  'gfns_zapped',
  'gfns_zapped_outside_request',
  'tables',
  'tables_allocated',
  'tables_freed',
  'entries_visited_l1',
  'entries_visited_l2',
  'entries_visited_l3',
  'entries_visited_l4',
  'entries_visited_l5',
  'yields',
  'leafs_aged',
  'leafs_write_protected',
  'splits',
  'retries_hull',
  'retries_seq',
  'retries_frozen',
  'retries_slot_invalid',
  'lock_sections',
  'invalidations',
  'kvm_request_free_obsolete_roots',
  'attribute_xarray_ops',
  'TDH.MEM.SEPT.ADD',
  'TDH.MEM.PAGE.AUG',
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'kicks',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.PHYMEM.PAGE.WBINVD',
  'private_pages_lost',
  'private_pages_to_accept',
  'gmem_pages_allocated',
  'gmem_pages_freed',
  'pages_accepted',
  'TDH.PHYMEM.PAGE.RECLAIM',
  'notifier_events',
  'TDH.MEM.PAGE.ADD',
  'TDH.MEM.PAGE.DEMOTE',
  'TDH.MEM.PAGE.PROMOTE',
  'TDG.MEM.PAGE.ACCEPT',
  'TDH.MR.EXTEND',
  'TDH.MR.FINALIZE',
  'TDH.VP.ENTER',
  'TDH.VP.FLUSH',
  'TDH.MNG.VPFLUSHDONE',
  'TDH.PHYMEM.CACHE.WB',
  'TDH.MNG.KEY.FREEID',
  'seamcalls_refused',
  'td_tlb_flushes',
  'kick_ipis',
  'pages_cleared',
  'retries_busy',
  'zero_step_checks',
  'exits_hypercall',
  'pages_leaked',
  'rmp_updates_private_4k',
  'rmp_updates_private_2m',
  'rmp_updates_shared_4k',
  'rmp_updates_shared_2m',
  'PSMASH',
  'cache_flushes',
  'rmp_faults_ignored',
  'rmp_faults_spurious',
  'rmp_faults_psmash',
  'pages_validated',
  'gmem_host_pages_unmapped',
] as const;
export type CounterName = (typeof COUNTER_NAMES)[number] | 'entries_visited';

/** Points where an operation stops if steps() asks for them (assembly/pause.ts, PAUSE_*). */
export const STOP_POINTS = {
  'attributes-zapped': 2,
  'attributes-stored': 4,
  'gmem-zapped': 8,
  'slot-invalid': 16,
  'notifier-started': 32,
} as const;
export type StopPoint = keyof typeof STOP_POINTS;
export const PAUSE_BUDGET = 1;

/** What may pass while an operation is paused (assembly/pause.ts, GATE_*). */
export const GATE_OPERATION = 0;
export const GATE_VCPU = 1;
export const GATE_CLOSE = 2;
export const GATE_HOST = 3;

/** The options that vmSetOption() numbers (assembly/vm.ts). */
export const OPTIONS = {
  hugepageGuard: 0,
  septVeDisable: 1,
  quirkSlotZapAll: 2,
  nxHugePages: 3,
  eagerPageSplit: 4,
  mmioCaching: 5,
  trace: 6,
  failReservation: 7,
  tdBuild: 8,
  spareBlocks: 9,
  privateHugePages: 10,
  zapPolicy: 11,
  trackBatched: 12,
  zeroStepLocalRetry: 13,
  packages: 14,
  rmpChecks: 20,
  gmemFilterByTarget: 21,
} as const;
