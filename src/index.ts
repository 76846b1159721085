// The public exports, nothing else.

export type { CounterName, StopPoint } from './engine/exports.ts';
export type { WasmSource } from './engine/load.ts';
export type { U64 } from './errors.ts';
export { EngineFault, KvmError } from './errors.ts';
export { closeFd, type FdKind, openFd } from './fds.ts';
export type { GfnRangesResult, KvmGfnRange, KvmGfnRanges } from './gfn-range.ts';
export { GuestMemfd } from './guest-memfd.ts';
export { type Advice, type HostKind, HostMemory, type HvaRange } from './host-memory.ts';
export type { CheckFinding, LeafRun, WalkEntry } from './inspect.ts';
export type { Loss, Producer } from './losses.ts';
export type { CreateVmOptions, FilterForm, KernelProfile, ResolvedOptions, VmType } from './options.ts';
export * from './scenario.ts';
export type {
  MapGpaRangeExit,
  PageOperation,
  PageSize,
  PageStateChange,
  PageStateEntry,
  PageStateResponse,
  PvalidateResult,
  RmpEntry,
  RmpFaultOutcome,
} from './snp.ts';
export {
  type CallableLeaf,
  type LeafName,
  type SeptRun,
  type SeptState,
  type TdOptions,
  TdxModule,
  type TdxStatus,
  type TrackPolicy,
  type ZapPolicy,
} from './tdx.ts';
export { type GfnRangeCall, type SpteChanged, type SpteMeaning, spteMeaning, type TraceEvent } from './trace.ts';
export {
  type Access,
  type AccessKind,
  type Exit,
  type FaultResult,
  type MapGpaExit,
  type MapGpaResult,
  Vcpu,
} from './vcpu.ts';
export {
  createVm,
  createVmSync,
  type Losses,
  type LossReport,
  type MemoryRegion,
  type MemoryRegion2,
  type Pause,
  Vm,
} from './vm.ts';
