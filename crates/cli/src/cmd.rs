//! One file per subcommand.

pub mod dev;
pub mod explain;
pub mod holders;
pub mod lint;
pub mod ls;
pub mod release;
pub mod run;
