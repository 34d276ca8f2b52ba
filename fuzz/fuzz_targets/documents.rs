//! Documents about jobs: orders, vouchers and receipts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_core::{Document, decode_body};
use tirami_ledger::documents::{Order, Receipt, Voucher};

fn read<T: Document + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(document) = decode_body::<T>(data) {
        let bytes = minicbor::to_vec(&document).unwrap_or_default();
        assert_eq!(decode_body::<T>(&bytes), Ok(document));
    }
}

fuzz_target!(|data: &[u8]| {
    read::<Order>(data);
    read::<Voucher>(data);
    read::<Receipt>(data);
});
