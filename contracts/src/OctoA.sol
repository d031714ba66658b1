// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title OCTO-A, the token that is staked
/// @notice 10^10 OCTO-A with 18 decimals, all minted to the deployer; nobody can mint more. Holders may burn their own:
/// the stake registry burns what it slashes.
contract OctoA is ERC20, ERC20Burnable, ERC20Permit {
    uint256 public constant SUPPLY = 10_000_000_000 ether;

    constructor() ERC20("OCTO-A", "OCTO-A") ERC20Permit("OCTO-A") {
        _mint(msg.sender, SUPPLY);
    }
}
