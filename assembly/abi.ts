// Arguments as they cross the boundary: numbers only. A raw u64 of an ioctl comes as two halves, low first, where a
// double could not hold it; gfns and counts come as f64. The calls that are made most pass their gate here; for the others
// src/vm.ts asks it first.

import { reserveWanted, wantNothing } from './blocks';
import { counter as counterValue, ctl, PROFILE_RFC_V4, SEAMCALL_STATUS_BASE, VM_SNP, VM_TDX } from './control';
import { clearDirtyLog, dirtyRuns, getDirtyLogCheck, getDirtyLogProtect } from './dirty_log';
import { pagesOf } from './entry';
import { vmGfnRange, vmGfnRanges, vmZapGfnRange } from './gfn_range';
import { gmemHostAccess, gmemPin, gmemSetAttributes } from './gmem_attributes';
import { gmemCreate, gmemFallocate, gmemMemoryError } from './guest_memfd';
import {
  hostAccess,
  hostChangePte,
  hostClearRefs,
  hostDenyHuge,
  hostKhugepaged,
  hostKsmMerge,
  hostMadvise,
  hostMigrate,
  hostMmap,
  hostMprotect,
  hostMremap,
  hostMunmap,
  hostPageIdleSet,
} from './host_mm';
import { mmuInvalidateRetry, mmuInvalidateRetryGfn, mmuInvalidateRetryGfnUnsafe } from './invalidate';
import { memIsPrivate, vmSetMemoryAttributes } from './mem_attributes';
import { vmSetMemoryRegion } from './memory_region';
import { isMixed, memslotAt } from './memslots';
import {
  mmuNotifierAge,
  mmuNotifierAgeFlush,
  mmuNotifierInvalidateRangeEnd,
  mmuNotifierInvalidateRangeStart,
  mmuNotifierTestAge,
  wantEvent,
} from './notifier';
import { reserveFault } from './page_fault';
import { atLevel } from './page_table';
import { GATE_OPERATION, GATE_VCPU, gate } from './pause';
import { vcpuPvalidate } from './pvalidate';
import { handleRmpFault } from './sev';
import { EINVAL, EOPNOTSUPP, STATUS_CAPACITY, STATUS_NO_HANDLE } from './status';
import { tdxSeamcall } from './tdx';
import { PAGE_ACCEPT, STATUSES, septFlags, septUnderBlockedTable, tableBlocked } from './tdx_module';
import { tdxInitMemRegion, tdxMapGpa, vcpuAccept } from './tdx_vcpu';
import { vcpuAccess, vcpuBeginFault, vcpuPreFaultMemory, vcpuSetAddressSpace } from './vcpu';
import { vmDestroy, vmEnableCap, vmRecoverNxHugePages, vmReleaseGmem, vmWriteNxHugePages } from './vm';

function u64Of(low: u32, high: u32): u64 {
  return <u64>low | ((<u64>high) << 32);
}

export function abiSetMemoryRegion(
  version: u32,
  slot: u32,
  flags: u32,
  gpaLow: u32,
  gpaHigh: u32,
  sizeLow: u32,
  sizeHigh: u32,
  hvaLow: u32,
  hvaHigh: u32,
  fd: i32,
  fdKind: u32,
  offsetLow: u32,
  offsetHigh: u32,
): i32 {
  const gpa = u64Of(gpaLow, gpaHigh);
  const size = u64Of(sizeLow, sizeHigh);
  const hva = u64Of(hvaLow, hvaHigh);
  return vmSetMemoryRegion(version, slot, flags, gpa, size, hva, fd, fdKind, u64Of(offsetLow, offsetHigh));
}

export function abiSetMemoryAttributes(
  addressLow: u32,
  addressHigh: u32,
  sizeLow: u32,
  sizeHigh: u32,
  attributesLow: u32,
  attributesHigh: u32,
  flagsLow: u32,
  flagsHigh: u32,
): i32 {
  const shut = gate(GATE_OPERATION);
  if (shut != 0) return shut;
  return vmSetMemoryAttributes(
    u64Of(addressLow, addressHigh),
    u64Of(sizeLow, sizeHigh),
    u64Of(attributesLow, attributesHigh),
    u64Of(flagsLow, flagsHigh),
  );
}

export function abiGmemCreate(
  sizeLow: u32,
  sizeHigh: u32,
  flagsLow: u32,
  flagsHigh: u32,
  fd: i32,
  folioOrder: u32,
): i32 {
  return gmemCreate(u64Of(sizeLow, sizeHigh), u64Of(flagsLow, flagsHigh), fd, folioOrder);
}
export function abiGmemFallocate(
  fd: i32,
  serial: u32,
  mode: u32,
  offsetLow: u32,
  offsetHigh: u32,
  lengthLow: u32,
  lengthHigh: u32,
): i32 {
  return gmemFallocate(fd, serial, mode, u64Of(offsetLow, offsetHigh), u64Of(lengthLow, lengthHigh));
}
export function abiGmemSetAttributes(
  fd: i32,
  serial: u32,
  offsetLow: u32,
  offsetHigh: u32,
  sizeLow: u32,
  sizeHigh: u32,
  attributesLow: u32,
  attributesHigh: u32,
  flagsLow: u32,
  flagsHigh: u32,
): i32 {
  const attributes = u64Of(attributesLow, attributesHigh);
  const flags = u64Of(flagsLow, flagsHigh);
  return gmemSetAttributes(fd, serial, u64Of(offsetLow, offsetHigh), u64Of(sizeLow, sizeHigh), attributes, flags);
}
export function abiGmemHostAccess(
  fd: i32,
  serial: u32,
  offsetLow: u32,
  offsetHigh: u32,
  lengthLow: u32,
  lengthHigh: u32,
): i32 {
  return gmemHostAccess(fd, serial, u64Of(offsetLow, offsetHigh), u64Of(lengthLow, lengthHigh));
}
export function abiGmemPin(fd: i32, serial: u32, page: f64, pin: u32): i32 {
  return gmemPin(fd, serial, <u64>page, pin);
}
export function abiGmemMemoryError(fd: i32, serial: u32, page: f64): i32 {
  return gmemMemoryError(fd, serial, <u64>page);
}
export function abiGmemRelease(fd: i32, serial: u32): i32 {
  return vmReleaseGmem(fd, serial);
}

export function abiEnableCap(cap: u32, flagsLow: u32, flagsHigh: u32, argLow: u32, argHigh: u32): i32 {
  return vmEnableCap(cap, u64Of(flagsLow, flagsHigh), u64Of(argLow, argHigh));
}
export function abiWriteNxHugePages(value: u32): i32 {
  return vmWriteNxHugePages(value);
}
export function abiRecoverNxHugePages(limit: u32): i32 {
  return vmRecoverNxHugePages(limit);
}

export function abiGetDirtyLogCheck(slot: u32): i32 {
  return getDirtyLogCheck(slot);
}
export function abiDirtyRuns(slot: u32, fromPage: f64): u32 {
  return dirtyRuns(slot, <u64>fromPage);
}
export function abiGetDirtyLogProtect(slot: u32): i32 {
  return getDirtyLogProtect(slot);
}
export function abiClearDirtyLog(slot: u32, firstLow: u32, firstHigh: u32, numPages: u32, bitmapBytes: u32): i32 {
  return clearDirtyLog(slot, u64Of(firstLow, firstHigh), numPages, bitmapBytes);
}

export function abiGfnRange(
  call: u32,
  asId: u32,
  slot: u32,
  startGfn: f64,
  endGfn: f64,
  argLow: u32,
  argHigh: u32,
  selector: u32,
): i32 {
  // A call that goes on after a pause does not come by here again: asyncify skips what is not paused.
  const shut = gate(GATE_OPERATION);
  if (shut != 0) return shut;
  return vmGfnRange(call, asId, slot, startGfn, endGfn, u64Of(argLow, argHigh), selector);
}
export function abiGfnRanges(
  call: u32,
  asId: u32,
  slot: u32,
  ranges: u32,
  npages: f64,
  argLow: u32,
  argHigh: u32,
  selector: u32,
  looks: u32,
): i32 {
  const shut = gate(GATE_OPERATION);
  if (shut != 0) return shut;
  return vmGfnRanges(call, asId, slot, ranges, npages, u64Of(argLow, argHigh), selector, looks);
}
export function abiZapGfnRange(startGfn: f64, endGfn: f64): i32 {
  return vmZapGfnRange(startGfn, endGfn);
}
export function abiDestroy(): i32 {
  return vmDestroy();
}

export function abiAccess(vcpu: u32, gfn: f64, access: u32, privateMode: u32, accesses: f64, strideGfns: f64): i32 {
  const shut = gate(GATE_VCPU);
  if (shut != 0) return shut;
  // Signed: half the instructions, and both are below 2^52.
  return vcpuAccess(vcpu, <i64>gfn, access, privateMode, accesses, <i64>strideGfns);
}
export function abiPreFaultMemory(
  vcpu: u32,
  gpaLow: u32,
  gpaHigh: u32,
  sizeLow: u32,
  sizeHigh: u32,
  flagsLow: u32,
  flagsHigh: u32,
): i32 {
  return vcpuPreFaultMemory(vcpu, u64Of(gpaLow, gpaHigh), u64Of(sizeLow, sizeHigh), u64Of(flagsLow, flagsHigh));
}
export function abiAccept(vcpu: u32, startGfn: f64, endGfn: f64, maxLevel: i32): i32 {
  return vcpuAccept(vcpu, <u64>startGfn, <u64>endGfn, maxLevel);
}
export function abiMapGpa(vcpu: u32, gpaLow: u32, gpaHigh: u32, sizeLow: u32, sizeHigh: u32): i32 {
  return tdxMapGpa(vcpu, u64Of(gpaLow, gpaHigh), u64Of(sizeLow, sizeHigh));
}
export function abiInitMemRegion(
  vcpu: u32,
  gpaLow: u32,
  gpaHigh: u32,
  pagesLow: u32,
  pagesHigh: u32,
  sourceLow: u32,
  sourceHigh: u32,
  flags: u32,
  signalAfter: f64,
): i32 {
  const source = u64Of(sourceLow, sourceHigh);
  return tdxInitMemRegion(vcpu, u64Of(gpaLow, gpaHigh), u64Of(pagesLow, pagesHigh), source, flags, signalAfter);
}

// --- The TDX module, called past KVM -----------------------------------------------------------------------------------

export function abiSeamcall(leaf: u32, gfn: f64, level: i32): i32 {
  if (ctl.vmType != VM_TDX || leaf > PAGE_ACCEPT) return -EINVAL;
  if (!reserveFault()) return STATUS_CAPACITY;
  return <i32>tdxSeamcall(leaf, <u64>gfn, level);
}
/** The next `times` calls of `leaf`, after `skip` more, end with `status`. */
export function abiInjectStatus(leaf: u32, status: u32, skip: u32, times: u32): i32 {
  if (ctl.vmType != VM_TDX) return -EINVAL;
  ctl.injectLeaf = leaf;
  ctl.injectStatus = status;
  ctl.injectSkip = skip;
  ctl.injectTimes = times;
  return 0;
}
/**
 * The S-EPT entry of `level` at `gfn`, or, where the walk ends higher up or `level` is 0, the one that it ends at: flags in
 * bits 0-7, level from bit 8, bit 16 at or under a blocked table, bit 17 a table.
 */
export function abiSeptEntry(gfn: f64, level: i32): i32 {
  if (ctl.vmType != VM_TDX) return -EINVAL;
  const flags = septFlags(<u64>gfn);
  const reached = atLevel;
  if (level > reached) {
    const base = <u64>gfn & ~(pagesOf(level) - 1);
    return (level << 8) | (tableBlocked(base, level) ? 1 << 16 : 0) | (1 << 17);
  }
  return <i32>(flags | ((<u32>reached) << 8) | (septUnderBlockedTable(<u64>gfn) ? 1 << 16 : 0));
}
export function abiSeamcallStatus(leaf: u32, status: u32): f64 {
  return <f64>load<u64>(SEAMCALL_STATUS_BASE + ((<usize>(leaf * STATUSES + status)) << 3));
}
export function abiBeginFault(vcpu: u32, gfn: f64, access: u32, privateMode: u32): i32 {
  return vcpuBeginFault(vcpu, <u64>gfn, access, privateMode);
}
export function abiPvalidate(vcpu: u32, startGfn: f64, endGfn: f64, level: i32, validate: u32): i32 {
  return vcpuPvalidate(vcpu, <u64>startGfn, <u64>endGfn, level, validate);
}
export function abiRmpFault(vcpu: u32, gfn: f64): i32 {
  if (vcpu >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (ctl.vmType != VM_SNP) return -EINVAL;
  return reserveFault() ? handleRmpFault(vcpu, <u64>gfn) : STATUS_CAPACITY;
}
export function abiSetAddressSpace(vcpu: u32, asId: u32): i32 {
  return vcpuSetAddressSpace(vcpu, asId);
}

// --- The host --------------------------------------------------------------------------------------------------------

export function abiHostMmap(kind: u32, hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32, prot: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  const length = u64Of(lengthLow, lengthHigh);
  if (start + length < start) return -EINVAL;
  return hostMmap(kind, start, start + length, prot);
}
export function abiHostMunmap(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  const length = u64Of(lengthLow, lengthHigh);
  if (start + length < start) return -EINVAL;
  return hostMunmap(start, start + length);
}
export function abiHostMprotect(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32, prot: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  const length = u64Of(lengthLow, lengthHigh);
  if (start + length < start) return -EINVAL;
  return hostMprotect(start, start + length, prot);
}
export function abiHostMadvise(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32, advice: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  const length = u64Of(lengthLow, lengthHigh);
  if (start + length < start) return -EINVAL;
  return hostMadvise(start, length, advice);
}
export function abiHostMremap(
  oldLow: u32,
  oldHigh: u32,
  lengthLow: u32,
  lengthHigh: u32,
  newLow: u32,
  newHigh: u32,
): i32 {
  return hostMremap(u64Of(oldLow, oldHigh), u64Of(lengthLow, lengthHigh), u64Of(newLow, newHigh));
}
export function abiHostAccess(
  hvaLow: u32,
  hvaHigh: u32,
  lengthLow: u32,
  lengthHigh: u32,
  write: u32,
  stepBytes: f64,
): i32 {
  return hostAccess(u64Of(hvaLow, hvaHigh), u64Of(lengthLow, lengthHigh), write != 0, <u64>stepBytes);
}
export function abiHostMigrate(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  return hostMigrate(start, start + u64Of(lengthLow, lengthHigh));
}
export function abiHostKhugepaged(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  return hostKhugepaged(start, start + u64Of(lengthLow, lengthHigh));
}
export function abiHostKsmMerge(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  return hostKsmMerge(start, start + u64Of(lengthLow, lengthHigh));
}
export function abiHostPageIdleSet(hvaLow: u32, hvaHigh: u32, pages: f64): i32 {
  return <i32>hostPageIdleSet(u64Of(hvaLow, hvaHigh), <u64>pages);
}
export function abiHostClearRefs(kind: u32): i32 {
  return hostClearRefs(kind);
}
export function abiHostChangePte(hvaLow: u32, hvaHigh: u32, writable: u32): i32 {
  if (ctl.profile != PROFILE_RFC_V4) return -EOPNOTSUPP;
  return hostChangePte(u64Of(hvaLow, hvaHigh), writable != 0);
}

export function abiHostFailHugePage(hvaLow: u32, hvaHigh: u32, lengthLow: u32, lengthHigh: u32): i32 {
  const start = u64Of(hvaLow, hvaHigh);
  return hostDenyHuge(start, start + u64Of(lengthLow, lengthHigh));
}

// --- The notifier, called bare ---------------------------------------------------------------------------------------

function reserveEvent(start: u64, end: u64): bool {
  wantNothing();
  wantEvent(start, end);
  return reserveWanted();
}
export function abiInvalidateRangeStart(startLow: u32, startHigh: u32, endLow: u32, endHigh: u32, blockable: u32): i32 {
  const start = u64Of(startLow, startHigh);
  const end = u64Of(endLow, endHigh);
  if (!reserveEvent(start, end)) return STATUS_CAPACITY;
  return mmuNotifierInvalidateRangeStart(start, end, blockable != 0) ? 1 : 0;
}
export function abiInvalidateRangeEnd(startLow: u32, startHigh: u32, endLow: u32, endHigh: u32): i32 {
  if (ctl.notifierActive == 0) return -EINVAL;
  mmuNotifierInvalidateRangeEnd(u64Of(startLow, startHigh), u64Of(endLow, endHigh));
  return 0;
}
export function abiNotifierAge(startLow: u32, startHigh: u32, endLow: u32, endHigh: u32, flush: u32): i32 {
  const start = u64Of(startLow, startHigh);
  const end = u64Of(endLow, endHigh);
  if (!reserveEvent(start, end)) return STATUS_CAPACITY;
  return (flush != 0 ? mmuNotifierAgeFlush(start, end) : mmuNotifierAge(start, end)) ? 1 : 0;
}
export function abiNotifierTestAge(hvaLow: u32, hvaHigh: u32): i32 {
  return mmuNotifierTestAge(u64Of(hvaLow, hvaHigh)) ? 1 : 0;
}

// --- Questions -------------------------------------------------------------------------------------------------------

export function abiRetryGfn(seq: f64, gfn: f64): i32 {
  return mmuInvalidateRetryGfn(<u64>seq, <u64>gfn) ? 1 : 0;
}
export function abiRetryGfnUnsafe(seq: f64, gfn: f64): i32 {
  return mmuInvalidateRetryGfnUnsafe(<u64>seq, <u64>gfn) ? 1 : 0;
}
export function abiRetry(seq: f64): i32 {
  return mmuInvalidateRetry(<u64>seq) ? 1 : 0;
}
export function abiIsMixed(asId: u32, slot: u32, level: i32, gfn: f64): i32 {
  return isMixed(memslotAt(asId, slot), level, <u64>gfn) ? 1 : 0;
}
export function abiIsPrivate(gfn: f64): i32 {
  return memIsPrivate(<u64>gfn) ? 1 : 0;
}
export function abiCounter(index: i32): f64 {
  return <f64>counterValue(index);
}
