//! Tests of the checks of fences and padding.

use super::*;
use crate::Add;

#[test]
fn fences_and_padding_are_looked_at() {
    let kernel = Add { rows: 2, c: 3 };
    let (operand, values) = (Operand::write("y", [2, 3]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for storage in [Storage::F32, Storage::F16, Storage::F16_PACKED] {
        let inside = storage.encode(DType::Elem, &operand.shape, &values);
        let all = [poison(FENCE_BYTES), inside.clone(), poison(FENCE_BYTES)].concat();
        let said = |all: &[u8]| unfenced(&kernel, &operand, storage, all, inside.len());
        assert_eq!(said(&all).expect("nothing is wrong"), values);
        for at in [0, FENCE_BYTES - 1, FENCE_BYTES + inside.len(), all.len() - 1] {
            let mut all = all.clone();
            all[at] ^= 1;
            assert!(matches!(said(&all), Err(RunError::Outside { operand: "y", .. })), "byte {at} was changed");
        }
        let mut all = all.clone();
        all[FENCE_BYTES + inside.len() - 1] = 1;
        assert!(matches!(said(&all), Err(RunError::Padding { operand: "y", .. })), "the padding is not zero");
    }
}
