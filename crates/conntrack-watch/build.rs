//! Compiles the drop helper with clang into an object that the library carries.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/bpf");
    let object = PathBuf::from(std::env::var("OUT_DIR")?).join("drops.bpf.o");
    libbpf_cargo::SkeletonBuilder::new()
        .source("src/bpf/drops.bpf.c")
        .obj(&object)
        .clang_args(["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"])
        .build()?;
    Ok(())
}
