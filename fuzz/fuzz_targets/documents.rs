//! Documents about jobs: orders, vouchers and receipts.

#![no_main]

mod again;

use again::again;
use libfuzzer_sys::fuzz_target;
use tirami_core::decode_body;
use tirami_ledger::documents::{Order, Receipt, Voucher};

fuzz_target!(|data: &[u8]| {
    let _ = decode_body::<Order>(data).inspect(again);
    let _ = decode_body::<Voucher>(data).inspect(again);
    let _ = decode_body::<Receipt>(data).inspect(again);
});
