// SPDX-License-Identifier: MIT
// What the tests of EVM chains pay with. contracts.json holds these compiled; build.js makes it again.
pragma solidity ^0.8.20;

/// A token with the outward shape of USDT (TetherToken 0.4.17): nothing is returned, the owner may switch on a fee,
/// pause it, or freeze an address. What the fee leaves is what the log tells the recipient.
contract UsdtLike {
    string public constant name = "Tether USD";
    string public constant symbol = "USDT";
    uint8 public immutable decimals;
    uint256 public totalSupply;
    address public owner;
    bool public paused;
    uint256 public basisPointsRate;
    uint256 public maximumFee;
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;
    mapping(address => bool) public isBlackListed;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    constructor(uint256 supply, uint8 places) {
        owner = msg.sender;
        decimals = places;
        totalSupply = supply;
        balanceOf[msg.sender] = supply;
    }

    modifier onlyOwner() {
        require(msg.sender == owner, "not the owner");
        _;
    }

    function transfer(address to, uint256 value) external {
        _move(msg.sender, to, value);
    }

    function transferFrom(address from, address to, uint256 value) external {
        allowance[from][msg.sender] -= value;
        _move(from, to, value);
    }

    function approve(address spender, uint256 value) external {
        allowance[msg.sender][spender] = value;
        emit Approval(msg.sender, spender, value);
    }

    function setParams(uint256 basisPoints, uint256 most) external onlyOwner {
        basisPointsRate = basisPoints;
        maximumFee = most;
    }

    function setPaused(bool on) external onlyOwner {
        paused = on;
    }

    function setBlackListed(address who, bool on) external onlyOwner {
        isBlackListed[who] = on;
    }

    function _move(address from, address to, uint256 value) private {
        require(!paused, "paused");
        require(!isBlackListed[from], "frozen");
        uint256 fee = value * basisPointsRate / 10000;
        if (fee > maximumFee) fee = maximumFee;
        balanceOf[from] -= value;
        balanceOf[to] += value - fee;
        emit Transfer(from, to, value - fee);
        if (fee > 0) {
            balanceOf[owner] += fee;
            emit Transfer(from, owner, fee);
        }
    }
}

/// Pays ether out of a contract, as exchanges do: no transaction has the recipient in its `to`.
contract Splitter {
    function pay(address payable[] calldata to) external payable {
        uint256 each = msg.value / to.length;
        for (uint256 i = 0; i < to.length; i++) {
            (bool done,) = to[i].call{value: each}("");
            require(done, "refused");
        }
    }

    /// As `pay`, and then undoes everything.
    function payAndRevert(address payable[] calldata to) external payable {
        this.pay{value: msg.value}(to);
        revert("changed my mind");
    }

    function destroy(address payable to) external payable {
        selfdestruct(to);
    }
}

/// Moves tokens to many in one transaction: it has to hold them.
contract Batch {
    function transfer(UsdtLike token, address[] calldata to, uint256[] calldata values) external {
        for (uint256 i = 0; i < to.length; i++) token.transfer(to[i], values[i]);
    }

    /// As `transfer`, and then undoes everything.
    function transferAndRevert(UsdtLike token, address[] calldata to, uint256[] calldata values) external {
        this.transfer(token, to, values);
        revert("changed my mind");
    }
}

/// Tells of transfers that never were.
contract Fake {
    uint8 public constant decimals = 6;

    event Transfer(address indexed from, address indexed to, uint256 value);

    function forge(address from, address to, uint256 value) external {
        emit Transfer(from, to, value);
    }

    /// Log `count` times, to no purpose: whatever comes later in the block has another index then.
    function noise(uint256 count) external {
        for (uint256 i = 0; i < count; i++) emit Transfer(msg.sender, msg.sender, i);
    }
}
