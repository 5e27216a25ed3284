//! Sets the cfg under which the store's sources hold planted bugs.

fn main() {
    println!("cargo::rustc-cfg=planted");
    println!("cargo::rerun-if-changed=build.rs");
}
