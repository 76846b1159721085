// The ABI: what src/engine/exports.ts declares. No logic.

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
  abiGmemCreate,
  abiGmemFallocate,
  abiGmemMemoryError,
  abiGmemRelease,
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
  abiInvalidateRangeEnd,
  abiInvalidateRangeStart,
  abiIsMixed,
  abiIsPrivate,
  abiNotifierAge,
  abiNotifierTestAge,
  abiPreFaultMemory,
  abiRecoverNxHugePages,
  abiRetry,
  abiRetryGfn,
  abiRetryGfnUnsafe,
  abiSetAddressSpace,
  abiSetMemoryAttributes,
  abiSetMemoryRegion,
  abiWriteNxHugePages,
  abiZapGfnRange,
} from './abi';
export {
  inspectLeafs,
  inspectSpte,
  inspectSptes,
  inspectTables,
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
  CONTROL_AT_OPERATION,
  CONTROL_AT_PAUSE_GFN,
  CONTROL_AT_PAUSED,
  CONTROL_AT_RESULT0,
  CONTROL_AT_ROOT_HIGH_WATER,
  CONTROL_AT_STOP_MASK,
  CONTROL_AT_TRACE_COUNT,
  CONTROL_AT_TRACE_DROPPED,
  CONTROL_AT_YIELD_ARMED,
  CONTROL_AT_YIELD_GFN,
  CONTROL_FIXED_BYTES,
  COUNTER_COUNT,
  COUNTERS_BASE,
  LAYOUT_HASH,
} from './control';
export {
  BITMAP_BASE,
  BITMAP_BYTES,
  GMEM_BASE,
  GMEM_BYTES,
  IO_BASE,
  IO_BYTES,
  PAUSE_BASE,
  RING_BASE,
  ROOT_BYTES,
  ROOTS_BASE,
} from './layout';
export { gate } from './pause';
export { snapshotRegion } from './snapshot';
// vCPUs
export { vcpuDropFault, vcpuFinishFault, vcpuRun, vcpuSetInGuest } from './vcpu';
// life
export { vmCreate, vmFlushRemoteTlbs, vmSetOption } from './vm';
