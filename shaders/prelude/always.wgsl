// For every storage type: zeros unless a condition holds, and the index at which a row of weights begins.
fn pack_if(there: bool, p: Pack) -> Pack { return select(Pack(), p, there); }
fn weight_row(row: u32, len4: u32) -> u32 { return row * (len4 + WEIGHT_HEAD); }
