//! Adds rows to a redb database, one a transaction, and prints the number of each when it is committed: a
//! subject of the tests.
//!
//!     redb_rows make              makes an empty one
//!     redb_rows write immediate|none
//!     redb_rows acked             is all there that was acknowledged?

use std::error::Error;
use std::io::Write;

use redb::{Database, Durability, ReadableDatabase, TableDefinition, TableError};

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
const FILE: &str = "rows.redb";

fn filler(n: u64) -> Vec<u8> {
    let byte = u8::try_from(n % 251 + 1).unwrap_or(1);
    vec![byte; usize::try_from(n * 97 % 3000).unwrap_or(0)]
}

fn write(durability: Durability) -> Result<(), Box<dyn Error>> {
    let rows = Database::create(FILE)?;
    for n in 1.. {
        let mut transaction = rows.begin_write()?;
        transaction.set_durability(durability)?;
        transaction.open_table(ROWS)?.insert(n, &*filler(n))?;
        transaction.commit()?;
        writeln!(std::io::stdout(), "{n}")?;
    }
    Ok(())
}

fn check(owed: u64) -> Result<(), Box<dyn Error>> {
    let database = Database::open(FILE)?;
    let transaction = database.begin_read()?;
    let rows = match transaction.open_table(ROWS) {
        Ok(rows) => rows,
        Err(TableError::TableDoesNotExist(_)) if owed == 0 => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut count = 0;
    for row in rows.range(0..)? {
        let (n, found) = row?;
        count += 1;
        if n.value() != count || found.value() != filler(count) {
            return Err(format!("row {count} is not what was added").into());
        }
    }
    if count < owed {
        return Err(format!("{owed} rows were acknowledged, {count} are there").into());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make"] => Database::create(FILE).map(drop).map_err(Into::into),
        ["write", "immediate"] => write(Durability::Immediate),
        ["write", "none"] => write(Durability::None),
        ["acked"] => check(std::env::var("CRASHTEST_ACKS")?.parse()?),
        _ => Err("make, write immediate|none, or acked".into()),
    }
}
