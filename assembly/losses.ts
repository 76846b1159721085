// What a zap took that nobody had asked for: private content that was destroyed, gfns that went with a huge leaf.
//
// A range is asked for by its producer: punching a hole, closing the file, deleting the slot or converting to shared ask for
// the private content within the range; nothing asks for what lies beyond it. Records are kept in order, runs that go on are
// joined; what comes when the table is full is counted.
//
//   0      4          8          12    16      24     32             40           48
//   ├──────┼──────────┼──────────┼─────┼───────┼──────┼──────────────┼────────────┤
//   │ kind │ producer │ selector │ arg │ start │ end  │ requestStart │ requestEnd │
//   └──────┴──────────┴──────────┴─────┴───────┴──────┴──────────────┴────────────┘

import { ctl } from './control';
import { LOSS_BYTES, LOSSES_BASE, LOSSES_MAX } from './layout';

/** Content of private pages was destroyed. */
export const LOST_CONTENT: u32 = 1;
/** gfns beyond the range were zapped, of a direct and of a mirror root. */
export const OVER_ZAPPED_DIRECT: u32 = 2;
export const OVER_ZAPPED_MIRROR: u32 = 3;

// Who made the range (PRODUCERS of src/losses.ts).
export const PRODUCER_DIRECT: u32 = 0;
export const PRODUCER_NOTIFIER: u32 = 1;
export const PRODUCER_GMEM_PUNCH: u32 = 2;
export const PRODUCER_GMEM_RELEASE: u32 = 3;
export const PRODUCER_GMEM_ERROR: u32 = 4;
export const PRODUCER_SET_ATTRIBUTES: u32 = 5;
export const PRODUCER_SLOT: u32 = 6;
export const PRODUCER_ZAP_GFN_RANGE: u32 = 7;
export const PRODUCER_GMEM_ATTRIBUTES: u32 = 8;

/** The selector's bit that says that a direct call means private mappings (vendor.ts: only_private, filter PRIVATE). */
const MEANS_PRIVATE: u32 = 2 | 8;

/** A range is about to be zapped on behalf of ctl.producer. */
export function lossRequest(startGfn: u64, endGfn: u64, arg: u64, selector: u32): void {
  ctl.lossStart = startGfn;
  ctl.lossEnd = endGfn;
  ctl.lossArg = <u32>arg;
  ctl.lossSelector = selector;
}

/** Whether the request means the private content within its range. */
function asksForContent(): bool {
  switch (ctl.producer) {
    case PRODUCER_NOTIFIER:
    case PRODUCER_ZAP_GFN_RANGE:
      return false;
    case PRODUCER_SET_ATTRIBUTES:
    case PRODUCER_GMEM_ATTRIBUTES:
      return ctl.lossArg == 0;
    case PRODUCER_DIRECT:
      return (ctl.lossSelector & MEANS_PRIVATE) != 0;
    default:
      return true;
  }
}

/** Whether a zap that reaches [startGfn, endGfn) may take content that was not asked for. */
export function lossPossible(startGfn: u64, endGfn: u64): bool {
  return startGfn < ctl.lossStart || endGfn > ctl.lossEnd || !asksForContent();
}

/** The content of the private pages [startGfn, endGfn) is destroyed: notes what of it was not asked for. */
export function lossOfContent(startGfn: u64, endGfn: u64): void {
  if (!asksForContent()) {
    record(LOST_CONTENT, startGfn, endGfn);
    return;
  }
  if (startGfn < ctl.lossStart) record(LOST_CONTENT, startGfn, min(endGfn, ctl.lossStart));
  if (endGfn > ctl.lossEnd) record(LOST_CONTENT, max(startGfn, ctl.lossEnd), endGfn);
}

/** [startGfn, endGfn), if any, outside the range, went with a huge leaf of a direct (0) or mirror (1) root. */
export function overZapped(mirror: u32, startGfn: u64, endGfn: u64): void {
  if (startGfn < endGfn) record(mirror != 0 ? OVER_ZAPPED_MIRROR : OVER_ZAPPED_DIRECT, startGfn, endGfn);
}

function record(kind: u32, startGfn: u64, endGfn: u64): void {
  if (ctl.lossCount != 0) {
    const last = LOSSES_BASE + <usize>(ctl.lossCount - 1) * LOSS_BYTES;
    const alike =
      load<u32>(last) == kind &&
      load<u32>(last, 4) == ctl.producer &&
      load<u32>(last, 8) == ctl.lossSelector &&
      load<u32>(last, 12) == ctl.lossArg &&
      load<u64>(last, 24) == startGfn &&
      load<u64>(last, 32) == ctl.lossStart &&
      load<u64>(last, 40) == ctl.lossEnd;
    if (alike) {
      store<u64>(last, endGfn, 24);
      return;
    }
  }
  if (ctl.lossCount == LOSSES_MAX) {
    ctl.lossDropped++;
    return;
  }
  const ptr = LOSSES_BASE + <usize>ctl.lossCount * LOSS_BYTES;
  ctl.lossCount++;
  store<u32>(ptr, kind);
  store<u32>(ptr, ctl.producer, 4);
  store<u32>(ptr, ctl.lossSelector, 8);
  store<u32>(ptr, ctl.lossArg, 12);
  store<u64>(ptr, startGfn, 16);
  store<u64>(ptr, endGfn, 24);
  store<u64>(ptr, ctl.lossStart, 32);
  store<u64>(ptr, ctl.lossEnd, 40);
}
