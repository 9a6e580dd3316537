//! A bot and its broker part.

mod common;

use common::{report, run_in};

#[test]
fn only_the_bot_that_writes_its_orders_down_and_asks_the_ledger_stays_in_line_with_it() {
    let results = tempfile::tempdir().unwrap();
    for scenario in ["disconnect", "stale"] {
        let of = ["--scenario", scenario, "--strategy", "all", "--seed", "1"];
        let (status, all) = report(results.path(), &of);
        assert_eq!(status, 0, "{scenario}");
        for row in all["subjects"].as_array().unwrap() {
            let consistent = row["tally"]["broken"]["consistent"].is_null();
            assert_eq!(consistent, row["name"] == "managed", "{scenario}: {row:#}");
            // Each moment of two orders: calls, and requests that are lost in four ways.
            assert_eq!(row["whole"], true);
            assert!(row["tally"]["passed"].as_u64().unwrap() > 0);
        }
        let kept = &all["subjects"][0]["kept"][0];
        assert!(["double-order", "diverged"].contains(&kept["kind"].as_str().unwrap()));
        let output = run_in(results.path(), &["replay", kept["id"].as_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("again:   the same verdict"), "{text}");
    }
}
