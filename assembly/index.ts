// The ABI: what src/engine/exports.ts declares. No logic. The build writes the constants and the functions' names into
// src/engine/layout.ts; in the files that are shipped only LAYOUT_HASH has its name.

// memslots, attributes, guest_memfd
// dirty log, capabilities, parameters
// struct kvm_gfn_range
// the host and its notifier
// questions
export {
  abiAccept,
  abiAccess,
  abiBeginFault,
  abiClearDirtyLog,
  abiCounter,
  abiDestroy,
  abiDirtyRuns,
  abiEnableCap,
  abiGetDirtyLogCheck,
  abiGetDirtyLogProtect,
  abiGfnRange,
  abiGfnRanges,
  abiGmemCreate,
  abiGmemFallocate,
  abiGmemHostAccess,
  abiGmemMemoryError,
  abiGmemPin,
  abiGmemRelease,
  abiGmemSetAttributes,
  abiHostAccess,
  abiHostChangePte,
  abiHostClearRefs,
  abiHostFailHugePage,
  abiHostKhugepaged,
  abiHostKsmMerge,
  abiHostMadvise,
  abiHostMigrate,
  abiHostMmap,
  abiHostMprotect,
  abiHostMremap,
  abiHostMunmap,
  abiHostPageIdleSet,
  abiInitMemRegion,
  abiInjectStatus,
  abiInvalidateRangeEnd,
  abiInvalidateRangeStart,
  abiIsMixed,
  abiIsPrivate,
  abiMapGpa,
  abiNotifierAge,
  abiNotifierTestAge,
  abiPreFaultMemory,
  abiPvalidate,
  abiRecoverNxHugePages,
  abiRetry,
  abiRetryGfn,
  abiRetryGfnUnsafe,
  abiRmpFault,
  abiSeamcall,
  abiSeamcallStatus,
  abiSeptEntry,
  abiSetAddressSpace,
  abiSetMemoryAttributes,
  abiSetMemoryRegion,
  abiWriteNxHugePages,
  abiZapGfnRange,
} from './abi';
export {
  inspectLeafs,
  inspectRmp,
  inspectSept,
  inspectSpte,
  inspectSptes,
  inspectWalk,
  staleSharedLeafs,
  vmCheck,
} from './check';
export {
  CONTROL_AT_BUDGET,
  CONTROL_AT_DEAD,
  CONTROL_AT_DESTROYED,
  CONTROL_AT_DIRECT_BITS,
  CONTROL_AT_FIXED,
  CONTROL_AT_GMEM_HIGH_WATER,
  CONTROL_AT_INV_END,
  CONTROL_AT_INV_IN_PROGRESS,
  CONTROL_AT_INV_SEQ,
  CONTROL_AT_INV_START,
  CONTROL_AT_LOSS_COUNT,
  CONTROL_AT_OPERATION,
  CONTROL_AT_PAUSE_GFN,
  CONTROL_AT_PAUSED,
  CONTROL_AT_RESULT0,
  CONTROL_AT_ROOT_HIGH_WATER,
  CONTROL_AT_STOP_MASK,
  CONTROL_AT_TD_EPOCH,
  CONTROL_AT_TD_STATE,
  CONTROL_AT_TRACE_COUNT,
  CONTROL_AT_TRACE_DROPPED,
  CONTROL_AT_YIELD_ARMED,
  CONTROL_AT_YIELD_GFN,
  CONTROL_FIXED_BYTES,
  COUNTER_COUNT,
  COUNTERS_BASE,
  LAYOUT_HASH,
} from './control';
export { vmCheckGfnRanges, vmFlushRemoteTlbs } from './gfn_range';
export {
  BITMAP_BASE,
  BITMAP_BYTES,
  GMEM_BASE,
  GMEM_BYTES,
  IO_BASE,
  IO_BYTES,
  LOSSES_BASE,
  PAUSE_BASE,
  RING_BASE,
  ROOT_BYTES,
  ROOTS_BASE,
} from './layout';
export { gate } from './pause';
export { pscBegin, pscBeginMsr, pscComplete } from './sev';
export { snapshotRegion } from './snapshot';
// a TD
export {
  countHypercallExit,
  tdxFinalize,
  tdxTerminateVm,
  vcpuBeginAccept,
  vcpuBeginEnter,
  vcpuFinishAccept,
  vcpuFinishEnter,
} from './tdx_vcpu';
// vCPUs
export { vcpuDropFault, vcpuFinishFault, vcpuRun, vcpuSetInGuest } from './vcpu';
// life
export { vmCreate, vmSetOption } from './vm';
