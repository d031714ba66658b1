// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

/// @title OCTO, the token that pays
/// @notice 10^10 OCTO with 18 decimals, all minted to the deployer; nobody can mint more.
contract Octo is ERC20, ERC20Permit, ERC20Votes {
    uint256 public constant SUPPLY = 10_000_000_000 ether;

    constructor() ERC20("OCTO", "OCTO") ERC20Permit("OCTO") {
        _mint(msg.sender, SUPPLY);
    }

    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }

    function _update(address from, address to, uint256 value) internal override(ERC20, ERC20Votes) {
        super._update(from, to, value);
    }
}
