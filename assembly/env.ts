// What the engine imports. The file's name is the import's module.

/** Unwinds the stack into PAUSE_BASE, or, when rewinding, ends the rewind. `point` is for the reader of a trace. */
export declare function pause(point: u32): void;
